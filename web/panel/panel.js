// The distillation panel: what the latest run does, from the server's story and its events.
import { api } from "../../../scripts/api.js";
import { element } from "../element.js";
import { t } from "../words.js";
import { colourOf, drawCurves } from "./curves.js";
import { drawMatrix, mostAlike, nearestOf } from "./matrix.js";

const EVENT = "collectionlora.run";

/** @param {number} seconds */
export function inWords(seconds) {
  if (seconds < 90) return t("{n} s", { n: Math.round(seconds) });
  if (seconds < 5400) return t("{n} min", { n: Math.round(seconds / 60) });
  return t("{n} h", { n: (seconds / 3600).toFixed(1) });
}

/** @param {Record<string, any>} story */
function ending(story) {
  const how = story.ended ? t("Stopped: {reason}.", { reason: story.ended }) : t("Complete.");
  return `${how} ${story.kept ? t("Kept in {file}", { file: story.kept }) : t("Nothing was learnt yet.")}`;
}

/** @param {Record<string, any>} story */
function beginning(story) {
  return t("{phase}: {done} of {total}", { phase: t(story.phase), done: story.done, total: story.total });
}

/** @param {Record<string, any>} story */
function going(story) {
  const parts = [t("cycle {cycle} of {cycles}", { cycle: story.cycle, cycles: story.cycles })];
  if (story.seconds_each) {
    parts.push(t("{seconds} s each, {left} left", { seconds: story.seconds_each, left: inWords(story.seconds_left) }));
  }
  if (story.memory) parts.push(`${(story.memory / 2 ** 30).toFixed(1)} GiB`);
  return parts.join(", ") + (story.saved ? `. ${t("Saved: {file}", { file: story.saved })}` : "");
}

export class Panel {
  constructor() {
    this.root = element("div", "", { class: "cl-panel" });
    /** @type {Record<string, any> | null} */
    this.story = null;
    this.follow = true; // the slider stays at the newest preview until it is moved
    this.title = element("h3");
    this.state = element("div");
    this.said = element("div", "", { class: "cl-unseen", role: "status" });
    this.bar = element("progress");
    this.bar.setAttribute("aria-label", t("Progress"));
    this.cancel = element("button", t("Cancel"));
    this.cancel.title = t("Stop; what was trained is kept");
    this.cancel.addEventListener("click", () => api.interrupt(this.story?.prompt_id ?? null));
    this.save = element("button", t("Save now"));
    this.save.title = t("Write the collection as trained so far, and go on");
    this.save.addEventListener("click", async () => {
      this.save.disabled = true; // until a later cycle
      await api.fetchApi(`/collectionlora/save?prompt=${encodeURIComponent(this.story?.prompt_id ?? "")}`, {
        method: "POST",
      });
    });
    const buttons = element("div", "", { class: "cl-buttons" });
    buttons.append(this.cancel, this.save);
    this.which = element("select");
    this.which.setAttribute("aria-label", t("Curves"));
    for (const [value, text] of [["losses", t("losses by term")], ["effects", t("losses by effect")]]) {
      const option = element("option", text);
      option.value = value;
      this.which.append(option);
    }
    this.which.addEventListener("change", () => this.#draw());
    this.canvas = element("canvas", "", { role: "img" });
    this.table = element("table", "", { "aria-label": t("Losses of late") });
    this.when = element("input");
    this.when.type = "range";
    this.when.setAttribute("aria-label", t("Preview of which cycle"));
    this.when.addEventListener("input", () => {
      this.follow = Number(this.when.value) === Number(this.when.max);
      this.#picture();
    });
    this.caption = element("div");
    this.image = element("img");
    this.near = element("canvas", "", { class: "cl-matrix", role: "img" });
    this.found = element("div");
    this.nearest = element("div", "", { class: "cl-part" });
    const legend = t("Rows are these previews, columns the teachers' images of the same picture. Orange is near, blue farther than the untouched picture.");
    this.nearest.append(element("h3", t("Which effect's teacher image each preview is nearest to")), this.near, this.found, element("small", legend));
    this.previews = element("div", "", { class: "cl-part" });
    this.previews.append(element("h3", t("Previews")), this.image, this.when, this.caption, this.nearest);
    this.alike = element("canvas", "", { class: "cl-matrix", role: "img" });
    this.prompts = element("div", "", { class: "cl-part" });
    this.prompts.append(element("h3", t("How alike the prompts are")), this.alike);
    this.plan = element("pre");
    this.body = element("div");
    this.body.style.display = "contents";
    this.body.append(
      this.bar, buttons, this.which, this.canvas, this.table, this.previews, this.prompts, element("h3", t("Plan")), this.plan,
    );
    this.root.append(this.title, this.state, this.said, this.body);
    this.listener = (/** @type {any} */ event) => this.#hear(event.detail);
    api.addCustomEventListener(EVENT, this.listener);
    this.watch = new ResizeObserver(() => {
      this.#picture();
      this.#draw();
    });
    this.watch.observe(this.root);
    this.load();
  }

  remove() {
    api.removeCustomEventListener(EVENT, this.listener);
    this.watch.disconnect();
    this.root.remove();
  }

  /** Read the whole story: at the start, and when events were missed. */
  async load() {
    const response = await api.fetchApi("/collectionlora/run");
    this.story = response.ok ? await response.json() : null;
    this.#show();
  }

  /** @param {Record<string, any>} news */
  #hear(news) {
    const story = this.story;
    if (!story || story.prompt_id !== news.prompt_id || (news.cycle ?? 0) > story.cycle + 1) {
      this.load(); // another run, or events were missed
      return;
    }
    const { loss, effect_loss: effectLoss, compared, ...rest } = news;
    Object.assign(story, rest);
    Object.assign(story.nearest, compared);
    for (const [lines, losses] of [[story.losses, loss], [story.effects, effectLoss]]) {
      for (const [name, value] of Object.entries(losses ?? {})) {
        const line = (lines[name] ??= { cycle: [], loss: [] });
        line.cycle.push(news.cycle - 1);
        line.loss.push(value);
      }
    }
    this.#show();
  }

  #show() {
    const story = this.story;
    this.body.hidden = !story;
    this.title.textContent = story ? story.name : t("Distillation");
    if (!story) {
      this.state.textContent = t("Nothing has run since ComfyUI was started. Queue a graph with Distil Collection.");
      return;
    }
    const ended = story.phase === "ended";
    const before = story.phase && story.phase !== "cycles" && !ended;
    this.bar.max = before ? story.total : story.cycles;
    this.bar.value = before ? story.done : story.cycle;
    this.state.className = ended ? "cl-ended" : "";
    this.state.textContent = ended ? ending(story) : before ? beginning(story) : going(story);
    this.#say(ended || before ? story.phase : `${Math.floor((10 * story.cycle) / story.cycles)} ${story.saved ?? ""}`);
    this.cancel.disabled = ended;
    this.save.disabled = ended || before || !story.cycle;
    this.plan.textContent = story.plan ?? "";
    this.prompts.hidden = !story.prompts;
    const previews = story.previews ?? [];
    this.previews.hidden = !previews.length;
    this.when.max = String(Math.max(0, previews.length - 1));
    if (this.follow) this.when.value = this.when.max;
    this.#picture();
    this.#draw();
  }

  /** Have the state read out, once for each `key`: every cycle would be too often. @param {string} key */
  #say(key) {
    if (key === this.said.dataset.key) return;
    this.said.dataset.key = key;
    this.said.textContent = this.state.textContent;
  }

  #picture() {
    const cycle = this.story?.previews?.[Number(this.when.value)];
    if (cycle === undefined) return;
    const address = api.apiURL(
      `/collectionlora/preview?prompt=${encodeURIComponent(this.story?.prompt_id)}&cycle=${cycle}`,
    );
    if (!this.image.src.endsWith(address)) this.image.src = address;
    this.image.alt = t("What the student makes of the examples after {cycle} cycles", { cycle });
    this.caption.textContent = t("after {cycle} cycles", { cycle });
    this.when.setAttribute("aria-valuetext", this.caption.textContent);
    this.#compare(this.story?.nearest[cycle]);
  }

  /** @param {{names: string[], matrix: number[][]} | undefined} compared */
  #compare(compared) {
    this.nearest.hidden = !compared;
    if (!compared) return;
    const { names, matrix } = compared;
    drawMatrix(this.near, names, matrix, true);
    const nearest = nearestOf(matrix);
    const strays = nearest.flatMap((other, own) => {
      if (other === own) return [];
      const values = { name: names[own], other: names[other] ?? t("the untouched picture") };
      return [t("{name} is nearest to {other}", values)];
    });
    const right = t("{right} of {all} are nearest to their own", { right: names.length - strays.length, all: names.length });
    this.found.textContent = [right, ...strays].join(". ");
    this.near.setAttribute("aria-label", this.found.textContent);
  }

  #draw() {
    const story = this.story;
    if (!story) return;
    if (story.prompts) {
      const { names, matrix } = story.prompts;
      drawMatrix(this.alike, names, matrix, false);
      const [first, second, cosine] = mostAlike(names, matrix);
      const most = t("Most alike: {first} and {second}, cosine {cosine}", { first, second, cosine });
      this.alike.setAttribute("aria-label", most);
      this.alike.title = most;
    }
    const lines = story[this.which.value] ?? {};
    drawCurves(this.canvas, lines, story.cycles);
    const rows = Object.entries(lines).map(([name, line], index) => {
      const row = element("tr");
      const named = element("td");
      const dot = element("span", "", { class: "cl-dot" });
      dot.style.background = colourOf(index);
      named.append(dot, document.createTextNode(name));
      const lately = line.loss.slice(-20);
      const value = lately.reduce((/** @type {number} */ sum, /** @type {number} */ one) => sum + one, 0) / Math.max(1, lately.length);
      row.append(named, element("td", value.toPrecision(3)));
      return row;
    });
    this.table.replaceChildren(...rows);
    this.canvas.setAttribute("aria-label", t("Loss curves: {values}", { values: this.table.textContent ?? "" }));
  }
}
