//! From a conversation to token pieces, images as placeholders.

use std::path::Path;

use super::families::Config;
use super::fields::Fields;
use super::template::{Message, Template, special_token};
use crate::models::tokenizer::Tokenizer;
use crate::{Error, Result};

pub use super::template::Role;

/// What stands for an image in the text of a [`Turn`], as in LLaVA's data files.
pub const IMAGE: &str = "<image>";

/// A private-use character: what is put in place of the answer to find where answers go.
const SENTINEL: &str = "\u{F8FF}\u{F8FE}\u{F8FF}";

/// One message of a conversation; every [`IMAGE`] in its text is an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
}

/// A rendered conversation, up to where the model's answer begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text before the answer, with the checkpoint's placeholder for each image.
    pub text: String,
    /// What the template puts between that text and an answer, usually one blank. In decoding, a model writes it
    /// itself; in a teacher-forced sequence it must be inserted.
    pub separator: String,
    /// Number of images.
    pub images: usize,
}

impl Prompt {
    /// The whole text with an answer, to be encoded at once so that tokens form as in training.
    pub fn with_answer(&self, answer: &str) -> String {
        format!("{}{}{answer}", self.text, self.separator)
    }
}

/// A run of a token sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text tokens.
    Tokens(Vec<u32>),
    /// The rows of an image, counted from 0 in order of appearance.
    Image(usize),
}

/// An encoded text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Tokens and images in order.
    pub pieces: Vec<Piece>,
    /// For every token and every image (one entry each, in order) its byte range in the text; special tokens that the
    /// tokenizer puts in front have an empty range at 0.
    pub offsets: Vec<(usize, usize)>,
}

/// The conversation format of a checkpoint: template, tokenizer, image placeholder, end tokens.
pub struct PromptFormat {
    template: Template,
    tokenizer: Tokenizer,
    /// What the turns' images are replaced by.
    inserted: String,
    /// The part of it that is the image.
    placeholder: String,
    /// None where the placeholder is no token: it cuts the text.
    image_token: Option<u32>,
    /// The text of the token that stands for a film, which is refused.
    video: Option<String>,
    /// Ids the tokenizer puts in front of a text, and the text of the first if it has one.
    front: Vec<u32>,
    bos: Option<String>,
    eos: Vec<u32>,
}

impl PromptFormat {
    /// Reads tokenizer, template and generation settings in `dir`.
    ///
    /// # Errors
    /// A missing or broken file; an image token that the tokenizer does not know; no end-of-sequence token anywhere.
    pub fn read(dir: &Path, config: &Config) -> Result<Self> {
        let tokenizer = Tokenizer::load(dir)?;
        let settings = Fields::read_if_present(&dir.join("tokenizer_config.json"))?;
        let placeholder = match config.image_token {
            None => IMAGE.to_owned(),
            Some(id) => tokenizer.token(id).ok_or_else(|| {
                let message = format!("has no token {id}, which config.json names as the image");
                Error::invalid(tokenizer.path(), "", message)
            })?,
        };
        let (named, own) = config.conversation();
        let template = match own {
            false => Template::read(dir, settings.as_ref())?,
            true => Template::read_own(dir, settings.as_ref())?,
        };
        let template = match template {
            Some(template) => template,
            None => {
                let name = named.unwrap_or_else(|| fallback(config, &tokenizer));
                Template::known(name, settings.as_ref())?
            }
        };
        let this = Self {
            front: front(&tokenizer)?,
            bos: settings.as_ref().and_then(|s| special_token(s, "bos_token")),
            eos: eos(dir, config, settings.as_ref(), &tokenizer)?,
            image_token: config.image_token,
            video: config.video_token.and_then(|id| tokenizer.token(id)),
            inserted: config.placeholder().unwrap_or(&placeholder).to_owned(),
            placeholder,
            template,
            tokenizer,
        };
        this.check_placeholder()?;
        Ok(this)
    }

    /// The placeholder is one token; where it is none, the marks around it are.
    fn check_placeholder(&self) -> Result<()> {
        let path = self.tokenizer.path();
        let Some(image) = self.image_token else {
            let marks = self.inserted.split(&self.placeholder).filter(|mark| !mark.is_empty());
            for mark in marks {
                if self.tokenizer.token_id(mark).is_none() {
                    let message =
                        format!("has no token {mark}, but config.json says mm_use_im_start_end");
                    return Err(Error::invalid(path, "", message));
                }
            }
            return Ok(());
        };
        let ids = self.tokenizer.encode(&self.placeholder, false)?.ids;
        if ids == [image] {
            return Ok(());
        }
        let message = format!(
            "splits the image placeholder {:?} into {ids:?}, expected the one token {image}",
            self.placeholder
        );
        Err(Error::invalid(path, "", message))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids that end an answer: those of `generation_config.json`, else of `config.json`, else of the tokenizer.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The id that stands for an image, which must never be generated; none in the original layout.
    pub fn image_token(&self) -> Option<u32> {
        self.image_token
    }

    /// Where the template is from: a file, or the name of a known one if the checkpoint has none.
    pub fn template_name(&self) -> &str {
        self.template.name()
    }

    /// Renders a conversation that awaits an answer.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are no turns or the last is the assistant's; [`Error::Unsupported`] if the template
    /// refuses the conversation or loses an image of it.
    pub fn prompt(&self, turns: &[Turn]) -> Result<Prompt> {
        if turns.last().is_none_or(|t| t.role == Role::Assistant) {
            let got = if turns.is_empty() { "no turns" } else { "a conversation that is answered" };
            return Err(Error::argument("prompt", "turns", got, "turns that end with the user's"));
        }
        let texts: Vec<String> =
            turns.iter().map(|t| t.text.replace(IMAGE, &self.inserted)).collect();
        if let Some(video) = &self.video
            && texts.iter().any(|text| text.contains(video))
        {
            let message =
                format!("the turns have {video}, expected pictures only, each as {IMAGE}");
            return Err(Error::unsupported("a video in a conversation", message));
        }
        let mut messages: Vec<Message> =
            turns.iter().zip(&texts).map(|(t, text)| Message { role: t.role, text }).collect();
        let open = self.template.render(&messages, &self.placeholder, true)?;
        messages.push(Message { role: Role::Assistant, text: SENTINEL });
        let answered = self.template.render(&messages, &self.placeholder, false)?;

        let expected = turns.iter().map(|t| t.text.matches(IMAGE).count()).sum();
        let prompt = self.split(open, &answered, expected)?;
        let images = prompt.text.matches(&self.placeholder).count();
        if images != expected {
            return Err(self.refusal(format!(
                "the turns have {expected} images, the rendered prompt {images}"
            )));
        }
        Ok(prompt)
    }

    /// Finds the separator: what an answered conversation has between the open one and the answer.
    fn split(&self, open: String, answered: &str, images: usize) -> Result<Prompt> {
        let Some((before, _)) = answered.rsplit_once(SENTINEL) else {
            return Err(self.refusal("it does not print the assistant's answer".into()));
        };
        if let Some(separator) = before.strip_prefix(&open) {
            return Ok(Prompt { separator: separator.to_owned(), text: open, images });
        }
        // The open form is not how answered conversations begin (some templates end it with a blank, or have no open
        // form): then the answered form is what the model was trained on.
        let text = before.trim_end();
        let (blank, open_blank) = (&before[text.len()..], &open[open.trim_end().len()..]);
        if open.trim_end() == text && !open_blank.is_empty() && blank.ends_with(open_blank) {
            // The answered form has another blank in front of the open form's, as where roles and texts are printed apart.
            return Ok(Prompt { separator: String::new(), text: open, images });
        }
        Ok(Prompt { text: text.to_owned(), separator: before[text.len()..].to_owned(), images })
    }

    fn refusal(&self, message: String) -> Error {
        Error::unsupported(format!("chat template of {}", self.template.name()), message)
    }

    /// Encodes a text (a prompt, with or without an answer), with the special tokens that the tokenizer puts in front
    /// unless the text already begins with them; nothing is put behind.
    pub fn encode(&self, text: &str) -> Result<Vec<Piece>> {
        Ok(self.encode_with_offsets(text)?.pieces)
    }

    /// As [`PromptFormat::encode`], with byte offsets.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Encoded> {
        let has_bos = self.bos.as_ref().is_some_and(|b| !b.is_empty() && text.starts_with(b));
        self.encode_after(if has_bos { &[] } else { &self.front }, text)
    }

    /// As [`PromptFormat::encode_with_offsets`], with nothing put in front.
    ///
    /// # Errors
    /// As [`PromptFormat::encode`].
    pub fn encode_bare(&self, text: &str) -> Result<Encoded> {
        self.encode_after(&[], text)
    }

    fn encode_after(&self, front: &[u32], text: &str) -> Result<Encoded> {
        // One row a token or, without an id, an image.
        let mut rows: Vec<(Option<u32>, (usize, usize))> =
            front.iter().map(|&id| (Some(id), (0, 0))).collect();
        let mut at = 0;
        for (i, part) in self.parts(text).into_iter().enumerate() {
            if i > 0 {
                let end = at + self.placeholder.len();
                rows.push((None, (at, end)));
                at = end;
            }
            let encoding = self.tokenizer.encode(part, false)?;
            let ids =
                encoding.ids.iter().map(|&id| Some(id).filter(|_| Some(id) != self.image_token));
            rows.extend(
                ids.zip(encoding.offsets.iter().map(|(start, end)| (at + start, at + end))),
            );
            at += part.len();
        }
        let mut pieces: Vec<Piece> = Vec::new();
        let mut images = 0;
        for (id, _) in &rows {
            match (id, pieces.last_mut()) {
                (Some(id), Some(Piece::Tokens(run))) => run.push(*id),
                (Some(id), _) => pieces.push(Piece::Tokens(vec![*id])),
                (None, _) => {
                    pieces.push(Piece::Image(images));
                    images += 1;
                }
            }
        }
        let offsets = rows.into_iter().map(|(_, offset)| offset).collect();
        Ok(Encoded { pieces, offsets })
    }

    /// What is tokenised at once: all of a text, or the parts between images that are no tokens.
    fn parts<'a>(&self, text: &'a str) -> Vec<&'a str> {
        match self.image_token {
            Some(_) => vec![text],
            None => text.split(self.placeholder.as_str()).collect(),
        }
    }
}

/// The known template for a checkpoint without one that its family does not name.
fn fallback(config: &Config, tokenizer: &Tokenizer) -> &'static str {
    if config.text.model_type.starts_with("qwen") {
        "qwen_1_5"
    } else if tokenizer.token_id("<|im_start|>").is_some() {
        "chatml_direct"
    } else if config.text.model_type == "mistral" {
        "mistral_instruct"
    } else {
        "vicuna_v1"
    }
}

/// The ids that the tokenizer's post-processor puts in front of a text (usually one: BOS).
fn front(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let bare = tokenizer.encode("a", false)?.ids;
    let full = tokenizer.encode("a", true)?.ids;
    let start = full.windows(bare.len().max(1)).position(|w| w == bare).unwrap_or(0);
    Ok(full[..start].to_vec())
}

fn eos(
    dir: &Path,
    config: &Config,
    settings: Option<&Fields>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    if let Some(generation) = Fields::read_if_present(&dir.join("generation_config.json"))? {
        let ids = generation.ids("eos_token_id")?;
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    if !config.eos.is_empty() {
        return Ok(config.eos.clone());
    }
    settings
        .and_then(|s| special_token(s, "eos_token"))
        .and_then(|token| tokenizer.token_id(&token))
        .map(|id| vec![id])
        .ok_or_else(|| {
            Error::invalid(
                dir,
                "",
                "no end-of-sequence token: none in generation_config.json, config.json or tokenizer_config.json",
            )
        })
}
