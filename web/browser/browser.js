// The collection browser: a list of files; of the chosen one its effects, with titles and pictures to change.
import { api } from "../../../scripts/api.js";
import { effectsOf, forget } from "../picker/catalogue.js";
import { element } from "../element.js";
import { t } from "../words.js";

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

/** @param {number} bytes */
function sizeInWords(bytes) {
  return bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${(bytes / 2 ** 30).toFixed(2)} GiB`;
}

export class Browser {
  constructor() {
    this.root = element("div", "", { class: "cl-browser" });
    /** @type {File[]} */
    this.files = [];
    /** @type {File | null} */
    this.open = null;
    /** @type {Record<string, string>} */
    this.titles = {};
    /** @type {Record<string, string>} */
    this.pictures = {};
    /** @type {Set<string>} */
    this.drop = new Set();
    this.save = element("button", t("Save"), { type: "button" });
    this.save.addEventListener("click", () => this.#write(""));
    this.name = element("input", "", { type: "text", "aria-label": t("Name of the copy"), placeholder: "collections/…" });
    this.name.addEventListener("input", () => this.#mark());
    this.copy = element("button", t("Save as"), { type: "button" });
    this.copy.title = t("Write a copy below models/loras");
    this.copy.addEventListener("click", () => this.#write(this.name.value.trim()));
    this.list = element("ul", "", { "aria-label": t("Collections") });
    this.message = element("div", "", { role: "status" });
    this.detail = element("div", "", { class: "cl-detail" });
    this.root.append(element("h3", t("Collections")), this.message, this.list, this.detail);
    // Typing must not reach the canvas' shortcuts.
    this.root.addEventListener("keydown", (event) => event.stopPropagation());
    this.load();
  }

  /** Read the list anew; stays on the open file, or on `name`. @param {string} [name] */
  async load(name = this.open?.file) {
    this.message.textContent = t("Reading the folders …");
    const response = await api.fetchApi("/collectionlora/collections");
    this.files = response.ok ? await response.json() : [];
    this.message.textContent = this.files.length ? "" : t("No collection in models/loras yet.");
    this.list.replaceChildren(...this.files.map((file) => this.#line(file)));
    const again = this.files.find((file) => file.file === name);
    if (again) await this.show(again);
  }

  /** @param {File} file */
  #line(file) {
    const button = element("button", "", { type: "button" });
    button.dataset.file = file.file;
    const facts = t("{effects} effects, {size}", { effects: file.effects, size: sizeInWords(file.bytes) });
    button.append(element("span", file.file, { class: "cl-file" }), element("span", facts, { class: "cl-facts" }));
    button.addEventListener("click", () => this.show(file));
    const line = element("li");
    line.append(button);
    return line;
  }

  /** Open a file. @param {File} file */
  async show(file) {
    this.open = file;
    this.#forgetChanges();
    for (const button of this.list.querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.file === file.file));
    }
    forget(file.file); // another page may have changed it
    let effects;
    try {
      effects = await effectsOf(file.file);
    } catch (error) {
      this.message.textContent = String(error instanceof Error ? error.message : error);
      return;
    }
    if (this.open !== file) return; // another one was opened meanwhile
    const facts = element("dl");
    const lines = { [t("Base")]: file.base, [t("Steps")]: String(file.steps), ...file.training };
    for (const [name, value] of Object.entries(lines)) facts.append(element("dt", name), element("dd", value));
    const effectList = element("ul", "", { class: "cl-effects", "aria-label": t("Effects") });
    effectList.append(...effects.map((effect) => this.#effect(effect)));
    this.detail.replaceChildren(facts, this.#actions(file), effectList);
    this.#mark();
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
  #take(effect, chosen, picture) {
    if (!chosen) return;
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      const address = String(reader.result);
      picture.src = address;
      picture.classList.add("cl-new");
      this.pictures[effect.name] = address.slice(address.indexOf(",") + 1);
      this.#mark();
    });
    reader.readAsDataURL(chosen);
  }

  /** @param {File} file */
  #actions(file) {
    const actions = element("div", "", { class: "cl-actions" });
    this.save.title = file.editable ? t("Write the changes into this file") : t("The built-in collection stays as it is");
    this.name.value = "";
    const address = api.apiURL(`/collectionlora/export?file=${encodeURIComponent(file.file)}`);
    const download = element("a", t("Download"), { href: address, download: "" });
    actions.append(this.save, this.name, this.copy, download);
    return actions;
  }

  /** @param {string} saveAs */
  async #write(saveAs) {
    this.save.disabled = this.copy.disabled = true;
    const asked = {
      file: this.open?.file,
      titles: this.titles,
      pictures: this.pictures,
      drop: [...this.drop],
      save_as: saveAs,
    };
    const response = await api.fetchApi("/collectionlora/edit", { method: "POST", body: JSON.stringify(asked) });
    const answer = await response.json();
    if (!response.ok) {
      this.message.textContent = answer.error ?? response.statusText;
      this.#mark();
      return;
    }
    forget(answer.file);
    await this.load(answer.file);
    const open = /** @type {HTMLElement | null} */ (this.list.querySelector('[aria-current="true"]'));
    open?.focus(); // the button that was pressed sleeps now
    this.message.textContent = t("Saved: {file}", answer);
  }

  #forgetChanges() {
    this.titles = {};
    this.pictures = {};
    this.drop.clear();
  }

  #changed() {
    return Object.keys(this.titles).length + Object.keys(this.pictures).length + this.drop.size > 0;
  }

  /** Not while there is something to lose. */
  mayClose() {
    if (this.#changed()) this.message.textContent = t("The changes are not saved yet.");
    return !this.#changed();
  }

  #mark() {
    this.save.disabled = !this.#changed() || !this.open?.editable;
    this.copy.disabled = !this.name.value.trim();
  }
}
