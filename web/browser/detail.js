// One open collection file: what is in it, and changes that are not saved yet. They are of this file alone.
import { api } from "../../../scripts/api.js";
import { element } from "../element.js";
import { inWords, t } from "../words.js";

/** @typedef {import("../picker/catalogue.js").Effect} Effect */
/**
 * @typedef {object} File
 * @property {string} file
 * @property {number} bytes
 * @property {number} effects
 * @property {number} steps
 * @property {string} base
 * @property {Record<string, string>} training
 * @property {boolean} editable
 */

const LARGEST = 512; // pixels a side that are sent of a new picture

/** What a file says of its training, in the user's words where they are known. @param {Record<string, string>} training */
function facts(training) {
  /** @type {Record<string, string>} */
  const names = {
    cycles: t("Cycles"),
    preset: t("Preset"),
    rank: t("Rank"),
    seed: t("Seed"),
    skipped_cycles: t("Cycles skipped"),
    seconds: t("Training time"),
    date: t("Finished on"),
    few_step: t("Few-step LoRA"),
    few_step_rank: t("Rank of that"),
    long_side: t("Longer side"),
    reference_method: t("Reference method"),
  };
  return Object.entries(training).map(([key, value]) => {
    const time = key === "seconds" && Number.isFinite(Number(value));
    return [Object.hasOwn(names, key) ? names[key] : key, time ? inWords(Number(value)) : value];
  });
}

export class Detail {
  /**
   * @param {File} file @param {Effect[]} effects
   * @param {(saveAs: string) => void} write asked to save, into this file if the name is empty
   * @param {() => void} discard asked to show the file as it is
   */
  constructor(file, effects, write, discard) {
    this.file = file;
    /** @type {Record<string, string>} */
    this.titles = {};
    /** @type {Record<string, string>} */
    this.pictures = {};
    /** @type {Set<string>} */
    this.drop = new Set();
    this.save = element("button", t("Save"), { type: "button" });
    this.save.title = file.editable ? t("Write the changes into this file") : t("The built-in collection stays as it is");
    this.save.addEventListener("click", () => write(""));
    this.discard = element("button", t("Discard"), { type: "button", title: t("Take the changes back") });
    this.discard.addEventListener("click", discard);
    this.name = element("input", "", { type: "text", "aria-label": t("Name of the copy"), placeholder: "collections/…" });
    this.name.addEventListener("input", () => this.#mark());
    this.copy = element("button", t("Save as"), { type: "button", title: t("Write a copy below models/loras") });
    this.copy.addEventListener("click", () => write(this.name.value.trim()));
    const address = api.apiURL(`/collectionlora/export?file=${encodeURIComponent(file.file)}`);
    const actions = element("div", "", { class: "cl-actions" });
    actions.append(this.save, this.discard, this.name, this.copy, element("a", t("Download"), { href: address, download: "" }));

    const told = element("dl");
    // pairs: a file may call what it says of its training anything, "Base" too
    const lines = [[t("Base"), file.base], [t("Steps"), String(file.steps)], ...facts(file.training)];
    for (const [name, value] of lines) told.append(element("dt", name), element("dd", value));
    const list = element("ul", "", { class: "cl-effects", "aria-label": t("Effects") });
    list.append(...effects.map((effect) => this.#effect(effect)));
    this.root = element("div", "", { class: "cl-detail" });
    this.root.append(told, actions, list);
    this.#mark();
  }

  changed() {
    return Object.keys(this.titles).length + Object.keys(this.pictures).length + this.drop.size > 0;
  }

  /** What the server is asked to write. @param {string} saveAs */
  request(saveAs) {
    const { titles, pictures } = this;
    return { file: this.file.file, titles, pictures, drop: [...this.drop], save_as: saveAs };
  }

  /** @param {Effect} effect */
  #effect(effect) {
    const line = element("li");
    line.dataset.name = effect.name;
    const { title } = effect;
    const picture = element("img", "", { alt: t("Picture of {title}", { title }), loading: "lazy" });
    if (effect.thumbnail) picture.src = effect.thumbnail;
    const field = element("input", "", { type: "text", maxlength: "120", "aria-label": t("Title of {name}", { name: effect.name }) });
    field.value = title;
    field.addEventListener("input", () => {
      if (field.value === title) delete this.titles[effect.name];
      else this.titles[effect.name] = field.value;
      this.#mark();
    });
    const file = element("input", "", { type: "file", accept: "image/png,image/webp,image/jpeg", hidden: "" });
    file.addEventListener("change", () => this.#take(effect, file.files?.[0], picture));
    const change = element("button", t("picture"), { type: "button", "aria-label": t("Another picture for {title}", { title }) });
    change.title = t("Another picture for {title}", { title });
    change.addEventListener("click", () => file.click());
    const drop = element("button", "✕", {
      type: "button",
      "aria-pressed": "false",
      "aria-label": t("Leave out {title}", { title }),
      title: t("Leave out of the list; the weights still hold it"),
    });
    drop.addEventListener("click", () => {
      const out = this.drop.has(effect.name);
      if (out) this.drop.delete(effect.name);
      else this.drop.add(effect.name);
      drop.setAttribute("aria-pressed", String(!out));
      line.classList.toggle("cl-out", !out);
      this.#mark();
    });
    line.append(picture, field, change, drop, file);
    line.title = effect.prompt;
    return line;
  }

  /** @param {Effect} effect @param {Blob | undefined} chosen @param {HTMLImageElement} picture */
  async #take(effect, chosen, picture) {
    if (!chosen) return;
    const address = await small(chosen).catch(() => whole(chosen)); // what is no picture the server refuses, in words
    picture.src = address;
    picture.classList.add("cl-new");
    this.pictures[effect.name] = address.slice(address.indexOf(",") + 1);
    this.#mark();
  }

  #mark() {
    this.save.disabled = !this.changed() || !this.file.editable;
    this.discard.disabled = !this.changed();
    this.copy.disabled = !this.name.value.trim();
  }
}

/** A picture's data address, no larger than a thumbnail needs. @param {Blob} file */
async function small(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = element("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL();
}

/** A file's data address. @param {Blob} file @returns {Promise<string>} */
const whole = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(String(reader.result)));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
