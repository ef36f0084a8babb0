//! Settings files of models: what each field of them may say.
//!
//! A file has a [`Table`]. A field that is read, or that changes no result, may have any value. Every
//! other field must be blank (null, false, empty) or have one of the values that the table lists;
//! else the file is refused by the field's name. So nothing that a file asks for is left out.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// The fields of one kind of file.
pub(super) struct Table {
    /// Read by the code that the table stands beside.
    pub read: &'static [&'static str],
    /// Changes nothing that is computed here.
    pub free: &'static [&'static str],
    /// Name, values beside the blank ones as JSON, what to do about another value.
    pub only: &'static [(&'static str, &'static [&'static str], &'static str)],
}

impl Table {
    /// Checks every field of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the first field that has a value which would be left out.
    pub fn check(&self, fields: &Map<String, Value>, path: &Path) -> Result<()> {
        for (name, value) in fields {
            let name = name.as_str();
            if self.read.contains(&name) || self.free.contains(&name) || is_blank(value) {
                continue;
            }
            let listed = self.only.iter().find(|(known, ..)| *known == name);
            if let Some((_, values, _)) = listed
                && values.iter().any(|json| serde_json::from_str(json).ok().as_ref() == Some(value))
            {
                continue;
            }
            let advice = match listed {
                Some((.., advice)) => (*advice).to_owned(),
                None => format!(
                    "the field {name} is not known here, so what it changes would be left out; \
                     if it changes no result, remove it from the file"
                ),
            };
            let mut seen = value.to_string();
            if let Some((cut, _)) = seen.char_indices().nth(80) {
                seen.truncate(cut);
                seen.push_str("...");
            }
            return Err(Error::unsupported(
                format!("{name} = {seen} in {}", path.display()),
                advice,
            ));
        }
        Ok(())
    }
}

/// What stands for "not set" in settings files.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_blank),
        _ => false,
    }
}

/// `adapter_config.json` of a LoRA.
pub(super) const ADAPTER: Table = Table {
    read: &[
        "peft_type",
        "base_model_name_or_path",
        "revision",
        "r",
        "rank_pattern",
        "lora_alpha",
        "alpha_pattern",
        "use_rslora",
        "init_lora_weights",
        "trainable_token_indices",
        "ensure_weight_tying",
    ],
    // Which modules are changed, and how, is seen from the tensors.
    free: &[
        "task_type",
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "target_parameters",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "bias",
        "lora_bias",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
        "loftq_config",
        "eva_config",
    ],
    only: &[
        ("use_dora", &[], "it is DoRA, expected LORA: merge it with PEFT"),
        ("fan_in_fan_out", &[], "weights stored as [in, out] are not built in: merge it with PEFT"),
        (
            "layer_replication",
            &[],
            "a model with repeated layers is not built in: merge it with PEFT",
        ),
        (
            "alora_invocation_tokens",
            &[],
            "an adapter that begins to act at a token is not built in",
        ),
        ("use_qalora", &[], "QALoRA is not built in: merge it with PEFT"),
        ("use_bdlora", &[], "block-diagonal LoRA is not built in: merge it with PEFT"),
        ("corda_config", &[], "CorDA is not built in: convert it to a plain LoRA with PEFT"),
        ("lora_ga_config", &[], "LoRA-GA is not built in: convert it to a plain LoRA with PEFT"),
    ],
};

/// `config.json` of a sentence encoder: what transformers gives every model, and what the four
/// architectures have.
pub(super) const ENCODER: Table = Table {
    read: &[
        "model_type",
        "vocab_size",
        "hidden_size",
        "dim",
        "num_hidden_layers",
        "n_layers",
        "num_attention_heads",
        "n_heads",
        "intermediate_size",
        "hidden_dim",
        "hidden_act",
        "activation",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
        "pad_token_id",
        "position_embedding_type",
        "relative_attention_num_buckets",
        "quantization_config",
        "is_decoder",
    ],
    free: &[
        "_name_or_path",
        "_attn_implementation_autoset",
        "_num_labels",
        "add_cross_attention",
        "adapters",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "decoder_start_token_id",
        "directionality",
        "dropout",
        "dtype",
        "early_stopping",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "max_length",
        "model_max_length",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_past",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "problem_type",
        "qa_dropout",
        "repetition_penalty",
        "length_penalty",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "num_beam_groups",
        "encoder_no_repeat_ngram_size",
        "no_repeat_ngram_size",
        "min_length",
        "return_dict",
        "sentence_transformers",
        "seq_classif_dropout",
        "sep_token_id",
        "sinusoidal_pos_embds",
        "task_specific_params",
        "tie_word_embeddings",
        "tie_weights_",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_bfloat16",
        "use_cache",
        "xla_device",
    ],
    only: &[
        ("pruned_heads", &[], "pruned heads are not built in: save the model without them"),
        ("embedding_size", &[], "embeddings of another width than the states are not built in"),
    ],
};

/// `tokenizer_config.json` of a sentence encoder.
pub(super) const TOKENIZER: Table = Table {
    read: &[
        "tokenizer_class",
        "model_max_length",
        "truncation_side",
        "do_lower_case",
        "strip_accents",
        "tokenize_chinese_chars",
        "add_prefix_space",
        "cls_token",
        "sep_token",
        "unk_token",
        "pad_token",
        "mask_token",
    ],
    free: &[
        "_name_or_path",
        "add_bos_token",
        "add_eos_token",
        "added_tokens_decoder",
        "additional_special_tokens",
        "auto_map",
        "backend",
        "bos_token",
        "chat_template",
        "clean_text",
        "clean_up_tokenization_spaces",
        "eos_token",
        "errors",
        "extra_special_tokens",
        "fast",
        "is_local",
        "legacy",
        "local_files_only",
        "max_len",
        "max_length",
        "max_seq_length",
        "merges_file",
        "model_input_names",
        "model_specific_special_tokens",
        "name_or_path",
        "never_split",
        "pad_to_multiple_of",
        "pad_token_type_id",
        "padding",
        "padding_side",
        "processor_class",
        "sp_model_kwargs",
        "special_tokens_map_file",
        "stride",
        "tokenizer_file",
        "trim_offsets",
        "truncation",
        "truncation_strategy",
        "use_fast",
        "vocab_file",
        "wordpieces_prefix",
    ],
    only: &[(
        "do_basic_tokenize",
        &["true"],
        "text that was split into words before is not what a sentence encoder gets: remove the field",
    )],
};

/// `preprocessor_config.json` and its like, of a LLaVA.
pub(super) const IMAGES: Table = Table {
    read: &[
        "image_processor_type",
        "size",
        "crop_size",
        "do_resize",
        "do_center_crop",
        "resample",
        "image_mean",
        "image_std",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "do_pad",
        "image_grid_pinpoints",
    ],
    free: &[
        "_processor_class",
        "_valid_processor_keys",
        "aspect_ratio_setting",
        "auto_map",
        "data_format",
        "default_to_square",
        "device",
        "disable_grouping",
        "do_convert_rgb",
        "feature_extractor_type",
        "image_seq_length",
        "input_data_format",
        "patch_size",
        "processor_class",
        "return_tensors",
    ],
    only: &[],
};

#[cfg(test)]
mod tests {
    use super::{ADAPTER, ENCODER, IMAGES, TOKENIZER, Table};
    use serde_json::{Value, json};
    use std::path::Path;

    fn check(table: &Table, fields: Value) -> Result<(), String> {
        let fields = fields.as_object().expect("an object");
        table.check(fields, Path::new("x.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_field_is_read_free_blank_or_refused() {
        let blank =
            json!({"r": 3, "task_type": "X", "new": null, "a": [], "b": {"c": false}, "d": ""});
        assert_eq!(check(&ADAPTER, blank), Ok(()));
        for (fields, named) in [
            (json!({"layer_replication": [[0, 2]]}), "layer_replication = [[0,2]] in x.json"),
            (json!({"something_new": 0}), "something_new = 0 in x.json"),
            (json!({"monteclora_config": {"num_samples": 4}}), "monteclora_config"),
        ] {
            let error = check(&ADAPTER, fields).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(check(&TOKENIZER, json!({"do_basic_tokenize": true})), Ok(()));
        assert!(check(&ENCODER, json!({"pruned_heads": {"0": [1]}})).is_err());
        assert!(check(&IMAGES, json!({"size_divisor": 32})).is_err());
    }

    #[test]
    fn no_field_has_two_rules() {
        for table in [&ADAPTER, &ENCODER, &TOKENIZER, &IMAGES] {
            let only = table.only.iter().map(|(name, ..)| name);
            let mut names: Vec<&&str> = table.read.iter().chain(table.free).chain(only).collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}
