// The rating page. Only the server knows a rater's position: this page shows the answer that it is given, and sends a
// judgment as soon as both parts are chosen. The rater's name is in the address (?rater=NAME), so that a reload, a
// bookmark or another browser continues at the same position.
"use strict";

const TEXT = {
  en: {
    title: "Who wrote it?",
    intro: "You will see pictures, each with a question and an answer. Some answers are by people, some by machines; nobody tells you which. Judge each answer twice:",
    pass: "Pass", passShort: "a person may have", passMeans: "A person may have written this answer to this question about this picture.",
    fail: "Fail", failShort: "no person would", failMeans: "No person would have written it.",
    qualityShort: "Quality", qualityMeans: "0 wrong or beside the question, 1 partly right, 2 right.",
    savedAtOnce: "Every judgment is saved at once. You can stop at any time and continue later under the same name.",
    yourName: "Your name", begin: "Begin",
    judged: "Judged", question: "Question", answer: "Answer", noAnswer: "(no answer)",
    picture: "The picture that the question is about", count: (n, of) => `Answer ${n} of ${of}`,
    askPassed: "Could a person have written this?", askQuality: "How good is the answer?",
    quality0: "wrong", quality1: "partly right", quality2: "right",
    savedWithBoth: "Saved as soon as both are chosen.", undo: "Undo last",
    saved: (n, of) => `Saved. Answer ${n} of ${of}.`, undone: (n, of) => `Taken back. Answer ${n} of ${of}.`,
    thanks: "Thank you!", allJudged: "You have judged all answers. You can close this page.",
    offline: "No connection to the server. Your last choice is kept and sent as soon as it answers.",
    noPicture: "The picture could not be loaded; reload the page.",
  },
  zh: {
    title: "这是谁写的？",
    intro: "您将看到一些图片，每张图片配有一个问题和一个回答。有的回答出自真人，有的出自机器，页面不会透露是哪一种。请对每个回答作两项判断：",
    pass: "通过", passShort: "可能是真人写的", passMeans: "针对这张图片和这个问题，这个回答可能是真人写的。",
    fail: "不通过", failShort: "真人不会这样写", failMeans: "真人不会写出这样的回答。",
    qualityShort: "质量", qualityMeans: "0 错误或答非所问，1 部分正确，2 正确。",
    savedAtOnce: "每个判断都会立即保存。您可以随时停下，之后用同一个名字继续。",
    yourName: "您的名字", begin: "开始",
    judged: "已判断", question: "问题", answer: "回答", noAnswer: "（没有回答）",
    picture: "问题所针对的图片", count: (n, of) => `第 ${n} 个回答，共 ${of} 个`,
    askPassed: "这可能是真人写的吗？", askQuality: "回答的质量如何？",
    quality0: "错误", quality1: "部分正确", quality2: "正确",
    savedWithBoth: "两项都选好后立即保存。", undo: "撤销上一个",
    saved: (n, of) => `已保存。第 ${n} 个回答，共 ${of} 个。`, undone: (n, of) => `已撤销。第 ${n} 个回答，共 ${of} 个。`,
    thanks: "谢谢！", allJudged: "您已判断完所有回答，可以关闭本页面。",
    offline: "无法连接服务器。您刚才的选择已保留，连接恢复后会自动发送。",
    noPicture: "图片无法加载，请刷新页面。",
  },
};
const RETRY_MILLISECONDS = 1500;

const find = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll("[data-choice]")];
const undoButtons = [...document.querySelectorAll(".undo")];
let language = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
let place = null; // the last response: {rater, sheet, position, of, question, answer}
let chosen = {}; // {passed, quality}, as far as they are chosen
let busy = false; // a request is in progress

class Refused extends Error {}

// ---- requests

// Repeats until the server answers. This is safe, because a judgment that did arrive is refused the second time.
async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  for (;;) {
    let response, answer;
    try {
      response = await fetch(path, options);
      answer = await response.json();
    } catch {
      notify(TEXT[language].offline);
      await new Promise((done) => setTimeout(done, RETRY_MILLISECONDS));
      continue;
    }
    notify("");
    if (!response.ok) throw new Refused(answer.error);
    return answer;
  }
}

const whereIs = (rater) => call(`/api/place?rater=${encodeURIComponent(rater)}`);

// One request at a time. After a refusal the page shows the position that the server reports.
async function proceed(request, says) {
  if (busy) return;
  busy = true;
  refreshButtons();
  let refusal = "";
  try {
    place = await request();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    refusal = error.message;
    if (place) place = await whereIs(place.rater);
  } finally {
    busy = false;
  }
  chosen = {};
  show();
  notify(refusal);
  if (place && says && !refusal) find("status").textContent = TEXT[language][says](place.position + 1, place.of);
}

function choose(what, value) {
  if (busy || !place || place.position >= place.of) return;
  chosen[what] = value;
  refreshButtons();
  if ("passed" in chosen && "quality" in chosen) {
    const { rater, sheet, position } = place;
    const body = { rater, sheet, position, ...chosen };
    proceed(() => call("/api/judge", body), "saved");
  }
}

function undo() {
  if (busy || !place || place.position === 0) return;
  const { rater, sheet, position } = place;
  const body = { rater, sheet, position: position - 1 };
  proceed(() => call("/api/withdraw", body), "undone");
}

// ---- showing

function show() {
  const done = place && place.position >= place.of;
  find("start").hidden = Boolean(place);
  find("item").hidden = !place || done;
  find("done").hidden = !done;
  find("rater").hidden = find("progress").hidden = !place;
  refreshButtons();
  if (!place) return find("name").focus();
  find("rater").textContent = place.rater;
  find("progress").setAttribute("aria-valuemax", place.of);
  find("progress").setAttribute("aria-valuenow", place.position);
  find("progress").firstElementChild.style.width = `${(100 * place.position) / place.of}%`;
  if (done) return find("thanks").focus();
  find("count").textContent = TEXT[language].count(place.position + 1, place.of);
  find("question").textContent = place.question;
  document.querySelector(".asks").hidden = !place.question;
  find("answer").textContent = place.answer;
  const source = `/picture/${place.sheet}/${place.position}`;
  if (find("picture").getAttribute("src") !== source) {
    find("picture").removeAttribute("src"); // do not show the last picture beside the next question
    find("picture").src = source;
  }
  if (place.position + 1 < place.of) new Image().src = `/picture/${place.sheet}/${place.position + 1}`;
  find("dialogue").focus({ preventScroll: true });
  scrollTo(0, 0);
}

function refreshButtons() {
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(chosen[button.dataset.choice] === JSON.parse(button.dataset.value)));
  }
  for (const button of undoButtons) button.disabled = busy || !place || place.position === 0;
}

function notify(message) {
  find("notice").hidden = !message;
  if (find("notice").textContent !== message) find("notice").textContent = message;
}

function speak() {
  const text = TEXT[language];
  document.documentElement.lang = language;
  document.title = text.title;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text[element.dataset.text];
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = text[element.dataset.label];
  find("picture").alt = text.picture;
  find("answer").dataset.empty = text.noAnswer;
  find("language").textContent = language === "zh" ? "English" : "中文";
  find("language").lang = language === "zh" ? "en" : "zh";
  if (place && place.position < place.of) find("count").textContent = text.count(place.position + 1, place.of);
}

// ---- input

for (const button of buttons) {
  button.addEventListener("click", () => choose(button.dataset.choice, JSON.parse(button.dataset.value)));
}
for (const button of undoButtons) button.addEventListener("click", undo);
find("picture").addEventListener("error", () => notify(TEXT[language].noPicture));
find("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("language", language);
  speak();
});
find("join").addEventListener("submit", (event) => {
  event.preventDefault();
  proceed(() => whereIs(find("name").value)).then(() => {
    if (place) history.pushState(null, "", `?rater=${encodeURIComponent(place.rater)}`);
  });
});
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  // While a Chinese input method is active, `key` is "Process".
  const key = event.key === "Process" ? event.code.replace(/^Key|^Digit|^Numpad/, "") : event.key;
  if (key === "p" || key === "P") choose("passed", true);
  else if (key === "f" || key === "F") choose("passed", false);
  else if (key === "0" || key === "1" || key === "2") choose("quality", Number(key));
  else if (key === "z" || key === "Z") undo();
});
addEventListener("popstate", () => location.reload());

speak();
const named = new URLSearchParams(location.search).get("rater");
if (named) proceed(() => whereIs(named));
else show();
