// What the student makes of each effect, beside what it should make; and which effect's picture that is nearest to.
import { api } from "../../../scripts/api.js";
import { element } from "../element.js";
import { t } from "../words.js";
import { drawMatrix, nearestOf } from "./matrix.js";

/** @typedef {Record<string, any>} Story */
/** @typedef {{cycle: number, like: number[]}} Made a picture, and how near it is to each effect's wanted one */

/** @param {string} address where the server has it @param {HTMLImageElement} image */
function show(image, address) {
  if (!image.src.endsWith(address)) image.src = address;
}

export class Previews {
  constructor() {
    this.follow = true; // the slider stays at the newest picture until it is moved
    /** @type {Story | null} */
    this.story = null;
    this.effect = "";
    this.when = element("input", "", { type: "range", min: "0", "aria-label": t("Preview of which cycle") });
    this.when.addEventListener("input", () => {
      this.follow = Number(this.when.value) === Number(this.when.max);
      this.draw();
    });
    this.figures = ["source", "target", "student"].map(() => {
      const figure = { root: element("figure"), image: element("img"), caption: element("figcaption") };
      figure.root.append(figure.image, figure.caption);
      return figure;
    });
    const row = element("div", "", { class: "cl-figures" });
    row.append(...this.figures.map((figure) => figure.root));
    this.near = element("canvas", "", { class: "cl-matrix", role: "img" });
    this.found = element("div");
    const legend = t("Rows are these previews, columns the teachers' images of the same picture. Orange is near, blue farther than the untouched picture.");
    this.root = element("div", "", { class: "cl-part" });
    const nearest = element("div", "", { class: "cl-part" });
    nearest.append(element("h3", t("Which effect's teacher image each preview is nearest to")), this.near, this.found);
    nearest.append(element("small", legend));
    this.root.append(element("h3", t("Previews")), row, this.when, nearest);
  }

  /** @param {Story} story @param {string} effect the one to show */
  show(story, effect) {
    if (effect !== this.effect) this.follow = true;
    this.story = story;
    this.effect = effect;
    const made = this.#made(effect);
    this.when.max = String(Math.max(0, made.length - 1));
    if (this.follow) this.when.value = this.when.max;
    this.root.hidden = !made.length;
    this.draw();
  }

  /** @param {string} effect @returns {Made[]} */
  #made(effect) {
    return this.story?.previews[effect] ?? [];
  }

  draw() {
    const made = this.#made(this.effect)[Number(this.when.value)];
    if (!this.story || !made) return;
    const { prompt_id: prompt, node, shown } = this.story;
    const { title, given } = shown.find((/** @type {any} */ one) => one.name === this.effect);
    const after = t("after {cycle} cycles", { cycle: made.cycle });
    const captions = [t("source"), given ? t("your picture") : t("teacher"), after];
    ["source", "target", String(made.cycle)].forEach((picture, at) => {
      const { image, caption } = this.figures[at];
      const asked = new URLSearchParams({ prompt, node, effect: this.effect, picture });
      show(image, api.apiURL(`/collectionlora/preview?${asked}`));
      caption.textContent = captions[at];
      image.alt = `${title}: ${captions[at]}`;
    });
    this.when.setAttribute("aria-valuetext", after);
    this.#compare(made.cycle);
  }

  /** Each effect's latest picture up to that cycle. @param {number} cycle */
  #compare(cycle) {
    const shown = this.story?.shown ?? [];
    const names = shown.map((/** @type {any} */ one) => one.title);
    /** @type {(number[] | undefined)[]} */
    const matrix = shown.map((/** @type {any} */ one) => this.#made(one.name).findLast((made) => made.cycle <= cycle)?.like);
    drawMatrix(this.near, names, matrix, true);
    const known = matrix.filter((line) => line).length;
    const strays = matrix.flatMap((line, own) => {
      const other = line ? nearestOf(line) : own;
      if (other === own) return [];
      return [t("{name} is nearest to {other}", { name: names[own], other: names[other] ?? t("the untouched picture") })];
    });
    const right = t("{right} of {all} are nearest to their own", { right: known - strays.length, all: known });
    this.found.textContent = [right, ...strays].join(". ");
    this.near.setAttribute("aria-label", this.found.textContent);
  }
}
