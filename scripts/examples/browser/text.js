/** Text to token ids and back, as the model was trained. */

import { Template } from "./node_modules/@huggingface/jinja/dist/index.js";
import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";

const SPECIAL = ["bos_token", "eos_token", "pad_token", "unk_token"];

/** The tokenizer, chat template and end tokens in an export's folder. */
export class Text {
  /** @param {object} files what is in the folder's text files, by name without ending; see `TEXT_FILES`. */
  constructor(files) {
    const ends = files.generation_config.eos_token_id ?? [];
    this.endTokenIds = Array.isArray(ends) ? ends : [ends];
    this.maxPositions = files.config.max_position_embeddings ?? files.config.n_positions ?? Infinity;
    this.settings = files.tokenizer_config;
    this.template = files.chat_template;
    this.tokenizer = new Tokenizer(files.tokenizer, files.tokenizer_config);
  }

  /** Token ids; `special` adds what the tokenizer puts around a text, such as a first token. */
  encode(text, { special = true } = {}) {
    return this.tokenizer.encode(text, { add_special_tokens: special }).ids;
  }

  /** The text of token ids, special tokens left out. */
  decode(ids) {
    if (ids.length === 0) return "";
    return this.tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
  }

  /** A conversation as the model reads it, up to where its answer begins; encode it without special tokens. */
  render(messages) {
    if (!this.template) throw new Error("This model has no chat template: give it plain text.");
    const special = SPECIAL.filter((name) => this.settings[name]).map((name) => [name, content(this.settings[name])]);
    const template = new Template(this.template);
    return template.render({ messages, add_generation_prompt: true, ...Object.fromEntries(special) });
  }

  /** Token ids that the model goes on from, for a question or for a plain text. */
  promptIds(prompt, chat) {
    if (chat) return this.encode(this.render([{ role: "user", content: prompt }]), { special: false });
    const ids = this.encode(prompt);
    return ids.length > 0 ? ids : this.endTokenIds.slice(0, 1);
  }
}

function content(token) {
  return typeof token === "string" ? token : token.content;
}
