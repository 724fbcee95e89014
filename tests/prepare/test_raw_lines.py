import pytest

from cromic_ds.files import read_lines
from cromic_ds.prepare.raw_lines import BadLine, format_line, parse_line


def test_fields_and_exact_id():
    post = parse_line("3cc6  #EOS# 洗一身汗。 #EOS# 有钱人。 #EOC#  #EOC# 好骚气。 \r\n".encode())
    assert (post.id, post.image, post.post) == ("3cc6", "3cc6 ", "洗一身汗。")
    assert post.comments == ["有钱人。", "好骚气。"]


def test_byte_order_mark_is_no_part_of_the_id():
    assert parse_line("\ufeffa #EOS# p #EOS# c\n".encode()).id == "a"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\n", "missing fields"),
        (b"a #EOS# p\n", "missing fields"),
        (b" #EOS# p #EOS# c\n", "missing fields"),
        (b"a #EOS# p #EOS# c b #EOS# q #EOS# d\n", "more than three fields"),
        (b"a #EOS#   #EOS# c\n", "empty post"),
        (b"a #EOS# p #EOS# \n", "no comments"),
        (b"a #EOS# p #EOS#  #EOC#  \n", "no comments"),
        (b"a #EOS# \xff\xfe #EOS# c\n", "bad UTF-8"),
        (b"x" * 501 + b" #EOS# p #EOS# c\n", "id is too long"),
    ],
)
def test_reasons(line, reason):
    with pytest.raises(BadLine) as error:
        parse_line(line)
    assert str(error.value) == reason


def test_format_is_the_inverse_of_parse():
    post = parse_line(format_line("a", "你好", ["好", "不好"]).encode())
    assert (post.id, post.post, post.comments) == ("a", "你好", ["好", "不好"])


def test_offsets_lead_back_to_the_lines(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes("一\n\r\nthree".encode())
    content = file.read_bytes()
    found = list(read_lines(file))
    assert [number for number, _, _ in found] == [1, 2, 3]
    assert all(content[offset : offset + len(line)] == line for _, offset, line in found)


def test_seed_file_parses_whole(shared):
    posts = [parse_line(line) for _, _, line in read_lines(shared / "seed_data" / "example.txt")]
    assert len(posts) == 10
    assert sum(len(post.comments) for post in posts) == 65
    assert all(post.image == f"{post.id} " for post in posts)
