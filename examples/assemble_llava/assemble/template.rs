//! The chat template of the assembled model.

use super::tokenizer::IMAGE;

/// Turns content lists into text before the template of the language model, which knows only text, sees them:
/// the images first, each on a line of its own, then the texts.
const FLATTEN: &str = "\
{%- set flat = namespace(messages=[]) -%}\
{%- for message in messages -%}\
{%- if message['content'] is string -%}\
{%- set flat.messages = flat.messages + [message] -%}\
{%- else -%}\
{%- set entry = namespace(text='') -%}\
{%- for part in message['content'] -%}\
{%- if part['type'] == 'image' -%}{%- set entry.text = entry.text + 'IMAGE\\n' -%}{%- endif -%}\
{%- endfor -%}\
{%- for part in message['content'] -%}\
{%- if part['type'] == 'text' -%}{%- set entry.text = entry.text + part['text'] -%}{%- endif -%}\
{%- endfor -%}\
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': entry.text}] -%}\
{%- endif -%}\
{%- endfor -%}\
{%- set messages = flat.messages -%}";

/// LLaVA-1.5's conversation form, for language models without a template of their own.
const PLAIN: &str = "\
{%- for message in messages -%}\
{%- if message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + ' ' }}\
{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' + message['content'] + eos_token }}\
{%- else -%}{{ message['content'] + ' ' }}{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}";

/// The language model's own template made to take LLaVA's content lists.
pub fn chat_template(own: Option<&str>) -> String {
    FLATTEN.replace("IMAGE", IMAGE) + own.unwrap_or(PLAIN)
}
