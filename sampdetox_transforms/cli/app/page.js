"use strict";
const get = (id) => document.getElementById(id);
let chosen = null; // the picture file, and its name
let seed = 0;
let running = 0; // answers to older questions are dropped

function show(part) {
  for (const id of ["result", "empty", "busy"]) get(id).hidden = id !== part;
}

function fail(message) {
  show("empty");
  get("error").textContent = message;
  get("error").hidden = false;
}

async function purify() {
  if (!chosen) return;
  const mine = ++running;
  get("error").hidden = true;
  show("busy");
  const ask = new URLSearchParams({ trigger: get("trigger").value, seed });
  try {
    const reply = await fetch("/purify?" + ask, {
      method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: chosen.content,
    });
    const answer = await reply.json();
    if (mine !== running) return;
    if (reply.ok) draw(answer); else fail(answer.error);
  } catch (error) {
    if (mine === running) fail("The app does not answer. Is it still running?");
  }
}

function draw(answer) {
  get("after").onload = () => {
    get("compare").classList.toggle("small", get("after").naturalWidth < 448);
    get("compare").classList.toggle("tiny", get("after").naturalWidth < 100);
  };
  for (const part of ["before", "after", "mask"]) get(part).src = answer[part];
  get("verdict").textContent = answer.verdict;
  get("warning").textContent = answer.warning;
  get("warning").hidden = !answer.warning;
  get("show").checked = answer.numbers.mask > 0;
  get("mask").hidden = !get("show").checked;
  get("download").href = answer.after;
  get("download").download = chosen.name.replace(/\.[^.]*$/, "") + "-clean.png";
  get("facts").replaceChildren(...Object.entries(answer.facts).flatMap(([name, text]) => {
    const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, detail.textContent] = [name, text];
    return [term, detail];
  }));
  show("result");
}

async function take(content, name) {
  chosen = { content: await content.arrayBuffer(), name };
  await purify();
}

async function start() {
  const { triggers, samples } = await (await fetch("/choices")).json();
  get("trigger").replaceChildren(...triggers.map((name) => new Option(name)));
  get("samples").replaceChildren(...samples.map((name) => {
    const [button, image] = [document.createElement("button"), new Image()];
    Object.assign(image, { src: "/sample/" + name, alt: name });
    Object.assign(button, { type: "button", title: name });
    button.append(image);
    button.onclick = async () => take(await (await fetch("/sample/" + name)).blob(), name + ".jpg");
    return button;
  }));
}

get("file").onchange = (event) => {
  const file = event.target.files[0];
  if (file) take(file, file.name);
  event.target.value = "";
};
get("trigger").onchange = purify;
get("again").onclick = () => { seed += 1; purify(); };
get("show").onchange = () => { get("mask").hidden = !get("show").checked; };
get("slider").oninput = () => get("compare").style.setProperty("--where", get("slider").value + "%");
for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    get("drop").classList.toggle("over", over);
    if (kind === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });
}
start();
