// The distillation panel: what the latest run does, or the latest of a node, from the server's story and its events.
import { api } from "../../../scripts/api.js";
import { element, isPages } from "../element.js";
import { inWords, t } from "../words.js";
import { coloursOf, drawCurves } from "./curves.js";
import { drawMatrix, mostAlike } from "./matrix.js";
import { Previews } from "./previews.js";

const EVENT = "collectionlora.run";
const CANCELLED = "cancelled"; // how the server says that the user stopped a run

/** @param {Record<string, any>} story */
function ending(story) {
  let how = t("Complete.");
  if (story.ended === CANCELLED) how = t("Cancelled.");
  else if (story.ended) how = t("Stopped: {reason}.", { reason: story.ended });
  return `${how} ${story.kept ? t("Kept in {file}", { file: story.kept }) : t("Nothing new was learnt.")}`;
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
  if (story.skipped) parts.push(t("{n} skipped", { n: story.skipped }));
  return parts.join(", ") + (story.saved ? `. ${t("Saved: {file}", { file: story.saved })}` : "");
}

export class Panel {
  /**
   * @param {() => string} [nodeId] of the node whose runs alone are shown; without one all are
   * @param {() => string} [workflowId] of the node's workflow
   */
  constructor(nodeId = () => "", workflowId = () => "") {
    this.nodeId = nodeId;
    this.workflowId = workflowId;
    this.root = element("div", "", { class: "cl-panel" });
    // Letters choose in lists, and must not reach the page's shortcuts.
    this.root.addEventListener("keydown", (event) => isPages(event) || event.stopPropagation());
    /** @type {Record<string, any> | null} */
    this.story = null;
    /** @type {Record<string, any>[] | null} */
    this.waiting = null; // what is heard while the story is read
    this.readings = 0;
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
      try {
        await api.fetchApi(`/collectionlora/save?${this.#run()}`, { method: "POST" });
      } catch {
        this.save.disabled = false;
      }
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
    this.effect = element("select", "", { "aria-label": t("Effect") });
    this.effect.addEventListener("change", () => this.#show());
    this.previews = new Previews();
    this.alike = element("canvas", "", { class: "cl-matrix", role: "img" });
    this.prompts = element("div", "", { class: "cl-part" });
    this.most = element("div");
    this.prompts.append(element("h3", t("How alike the prompts are")), this.alike, this.most);
    this.plan = element("pre");
    this.body = element("div");
    this.body.style.display = "contents";
    this.body.append(
      this.bar, buttons, this.effect, this.which, this.canvas, this.table, this.previews.root, this.prompts, element("h3", t("Plan")), this.plan,
    );
    this.root.append(this.title, this.state, this.said, this.body);
    this.listener = (/** @type {any} */ event) => this.#hear(event.detail);
    this.again = () => this.load();
    this.watch = new ResizeObserver(() => {
      this.previews.draw();
      this.#draw();
    });
  }

  /** Hear of the run, until it is removed. */
  attend() {
    api.addCustomEventListener(EVENT, this.listener);
    api.addEventListener("reconnected", this.again);
    this.watch.observe(this.root);
  }

  remove() {
    api.removeCustomEventListener(EVENT, this.listener);
    api.removeEventListener("reconnected", this.again);
    this.watch.disconnect();
    this.root.remove();
  }

  /** Read the whole story: at the start, and when events were missed. */
  async load() {
    const reading = ++this.readings;
    this.waiting ??= [];
    try {
      const wanted = new URLSearchParams({ node: this.nodeId(), workflow: this.workflowId() });
      const response = await api.fetchApi(`/collectionlora/run?${wanted}`);
      const story = response.ok ? await response.json() : null;
      if (reading === this.readings) this.story = story;
    } catch {
      // the server is away; this is called again when it is back
    }
    if (reading !== this.readings) return; // it is read once more
    const heard = this.waiting;
    this.waiting = null;
    this.#show();
    for (const news of heard) this.#hear(news);
  }

  /** @param {Record<string, any>} news */
  #hear(news) {
    if (![news.node, ""].includes(this.nodeId())) return;
    if (news.workflow && ![news.workflow, ""].includes(this.workflowId())) return;
    if (this.waiting) {
      this.waiting.push(news);
      return;
    }
    const story = this.story;
    const ours = story && story.prompt_id === news.prompt_id && story.node === news.node;
    if (ours && news.told <= story.told) return; // it was in what was read
    if (!ours || news.told > story.told + 1) {
      this.load(); // another run, or events were missed
      return;
    }
    const { loss, effect_loss: effectLoss, previews, ...rest } = news;
    Object.assign(story, rest);
    Object.assign(story.previews, previews);
    for (const [lines, losses] of [[story.losses, loss], [story.effects, effectLoss]]) {
      for (const [name, value] of Object.entries(losses ?? {})) {
        const line = (lines[name] ??= { cycle: [], loss: [] });
        line.cycle.push(news.cycle - 1);
        line.loss.push(value);
      }
    }
    this.#show();
  }

  /** How the server is asked about the run that is shown. */
  #run() {
    return new URLSearchParams({ prompt: this.story?.prompt_id ?? "", node: this.story?.node ?? "" });
  }

  #show() {
    const story = this.story;
    this.body.hidden = !story;
    this.title.textContent = story ? story.name : t("Distillation");
    if (!story) {
      this.state.textContent = this.nodeId()
        ? t("This node has not run in this workflow since ComfyUI was started. The tab Distil shows the latest run.")
        : t("Nothing has run since ComfyUI was started. Queue a graph with Distil Collection.");
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
    this.#listEffects(story.shown);
    this.previews.show(story, this.effect.value);
    this.#draw();
  }

  /** Have the state read out, once for each `key`: every cycle would be too often. @param {string} key */
  #say(key) {
    if (key === this.said.dataset.key) return;
    this.said.dataset.key = key;
    this.said.textContent = this.state.textContent;
  }

  /** @param {{name: string, title: string}[]} shown */
  #listEffects(shown) {
    const listed = [...this.effect.options].map((option) => option.value);
    this.effect.hidden = !shown.length;
    if (JSON.stringify(listed) === JSON.stringify(shown.map((one) => one.name))) return;
    this.effect.replaceChildren(...shown.map(({ name, title }) => element("option", title, { value: name })));
  }

  #draw() {
    const story = this.story;
    if (!story) return;
    if (story.prompts) {
      const { names, matrix } = story.prompts;
      drawMatrix(this.alike, names, matrix, false);
      const [first, second, cosine] = mostAlike(names, matrix);
      this.most.textContent = t("Most alike: {first} and {second}, cosine {cosine}", { first, second, cosine });
      this.alike.setAttribute("aria-label", this.most.textContent);
    }
    const lines = story[this.which.value] ?? {};
    const colours = coloursOf(Object.keys(lines), this.effect.value);
    drawCurves(this.canvas, lines, story.cycles, colours);
    const rows = Object.entries(lines).map(([name, line], index) => {
      const row = element("tr");
      const named = element("td");
      const dot = element("span", "", { class: "cl-dot" });
      dot.style.background = colours[index];
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
