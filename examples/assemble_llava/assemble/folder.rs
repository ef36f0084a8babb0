//! The JSON files and the README of the checkpoint folder.

use std::fs;
use std::path::Path;

use bdhs::{Error, Result};
use candle_core::DType;
use serde_json::{Map, Value, json};

use super::gguf::{Architecture, Gguf, LanguageConfig};
use super::tokenizer::{IMAGE, Special, TokenizerFiles};
use super::{Options, Shape, template, vision};

/// The AnyRes resolutions of LLaVA-1.6, [height, width] in pixels.
const PINPOINTS: [[usize; 2]; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

/// The AnyRes resolutions of a shape.
fn pinpoints(shape: Shape) -> Option<Value> {
    let sides = || (1..=6).map(|tiles| 384 * tiles);
    let many = || sides().flat_map(|height| sides().map(move |width| [height, width]));
    match shape {
        Shape::Llava => None,
        Shape::Next => Some(json!(PINPOINTS)),
        Shape::OneVision => Some(json!(many().collect::<Vec<_>>())),
    }
}

/// Writes everything but the weights.
pub fn write_json_files(
    out: &Path,
    gguf: &Gguf,
    language: &LanguageConfig,
    tokenizer: &TokenizerFiles,
    options: &Options,
) -> Result<()> {
    let path = out.join("tokenizer.json");
    tokenizer
        .tokenizer
        .save(&path, false)
        .map_err(|e| Error::invalid(&path, "", format!("could not be written: {e}")))?;
    let template = template::chat_template(gguf.string("tokenizer.chat_template")?);
    for (name, value) in [
        ("config.json", config(language, tokenizer, options)),
        ("generation_config.json", generation_config(tokenizer)),
        ("tokenizer_config.json", tokenizer_config(language, tokenizer, &template)),
        ("special_tokens_map.json", Value::Object(special_tokens(tokenizer))),
        ("preprocessor_config.json", preprocessor_config(options)),
        ("processor_config.json", processor_config(options)),
    ] {
        write(&out.join(name), &format!("{value:#}\n"))?;
    }
    // transformers' processor reads the template from here, its tokenizer from tokenizer_config.json.
    write(&out.join("chat_template.jinja"), &template)?;
    write(&out.join("README.md"), &readme(gguf, options)?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(path))
}

fn config(language: &LanguageConfig, tokenizer: &TokenizerFiles, options: &Options) -> Value {
    let (model_type, architecture) = match options.shape {
        Shape::Llava => ("llava", "LlavaForConditionalGeneration"),
        Shape::Next => ("llava_next", "LlavaNextForConditionalGeneration"),
        Shape::OneVision => ("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
    };
    let siglip = options.shape == Shape::OneVision;
    let side = vision::image_size(options.shape);
    let mut config = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": dtype_name(options.dtype),
        "image_token_index": tokenizer.image_token,
        "image_seq_length": (side / vision::PATCH).pow(2),
        "vision_feature_layer": if siglip { -1 } else { -2 },
        "vision_feature_select_strategy": strategy(options.shape),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": true,
        "tie_word_embeddings": language.tied,
        "pad_token_id": tokenizer.pad.id,
        "text_config": text_config(language, tokenizer, options.dtype),
        "vision_config": {
            "model_type": if siglip { "siglip_vision_model" } else { "clip_vision_model" },
            "hidden_size": vision::HIDDEN,
            "intermediate_size": vision::INNER,
            "projection_dim": vision::HIDDEN,
            "num_hidden_layers": vision::LAYERS,
            "num_attention_heads": vision::HEADS,
            "num_channels": 3,
            "image_size": side,
            "patch_size": vision::PATCH,
            "hidden_act": if siglip { "gelu_pytorch_tanh" } else { "quick_gelu" },
            "layer_norm_eps": if siglip { 1e-6 } else { 1e-5 },
        },
    });
    if let Some(pinpoints) = pinpoints(options.shape) {
        config["image_grid_pinpoints"] = pinpoints;
    }
    match options.shape {
        Shape::Llava => {}
        Shape::Next => config["use_image_newline_parameter"] = json!(true),
        Shape::OneVision => {
            config["vision_aspect_ratio"] = json!("anyres_max_9");
            // Nothing is this token: videos are not made.
            config["video_token_index"] = json!(tokenizer.image_token + 1);
            config["vision_config"]["vision_use_head"] = json!(false);
        }
    }
    config
}

fn strategy(shape: Shape) -> &'static str {
    if shape == Shape::OneVision { "full" } else { "default" }
}

fn text_config(language: &LanguageConfig, tokenizer: &TokenizerFiles, dtype: DType) -> Value {
    let (architecture, model_type) = match language.architecture {
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
    };
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": dtype_name(dtype),
        "vocab_size": language.rows.max(tokenizer.image_token as usize + 1),
        "hidden_size": language.hidden,
        "intermediate_size": language.inner,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": language.eps,
        "rope_theta": language.rope_theta,
        "max_position_embeddings": language.context,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": language.tied,
        "bos_token_id": tokenizer.bos.as_ref().map(|t| t.id),
        "eos_token_id": tokenizer.eos.id,
        "pad_token_id": tokenizer.pad.id,
    })
}

fn generation_config(tokenizer: &TokenizerFiles) -> Value {
    json!({
        "bos_token_id": tokenizer.bos.as_ref().map(|t| t.id),
        "eos_token_id": tokenizer.eos.id,
        "pad_token_id": tokenizer.pad.id,
    })
}

fn special_tokens(tokenizer: &TokenizerFiles) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |name: &str, token: Option<&Special>| {
        if let Some(token) = token {
            map.insert(name.into(), json!(token.text));
        }
    };
    put("bos_token", tokenizer.bos.as_ref());
    put("eos_token", Some(&tokenizer.eos));
    put("pad_token", Some(&tokenizer.pad));
    put("unk_token", tokenizer.unk.as_ref());
    map
}

fn tokenizer_config(
    language: &LanguageConfig,
    tokenizer: &TokenizerFiles,
    template: &str,
) -> Value {
    let mut config = special_tokens(tokenizer);
    config.extend([
        ("tokenizer_class".into(), json!("PreTrainedTokenizerFast")),
        ("model_max_length".into(), json!(language.context)),
        ("padding_side".into(), json!("left")),
        ("clean_up_tokenization_spaces".into(), json!(false)),
        ("add_bos_token".into(), json!(tokenizer.add_bos)),
        ("image_token".into(), json!(IMAGE)),
        ("chat_template".into(), json!(template)),
    ]);
    Value::Object(config)
}

fn preprocessor_config(options: &Options) -> Value {
    let side = vision::image_size(options.shape);
    let (processor, kind) = processor_names(options);
    let mut config = json!({
        "processor_class": processor,
        "image_processor_type": kind,
        "do_convert_rgb": true,
        "do_resize": true,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": true,
        "crop_size": {"height": side, "width": side},
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        // CLIP's colour statistics.
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    });
    if let Some(pinpoints) = pinpoints(options.shape) {
        config["do_pad"] = json!(true);
        config["image_grid_pinpoints"] = pinpoints;
    }
    match options.shape {
        Shape::Llava => {}
        Shape::Next => config["aspect_ratio_setting"] = json!("anyres"),
        Shape::OneVision => {
            config["size"] = json!({"height": side, "width": side});
            config["crop_size"] = Value::Null;
            config["do_center_crop"] = json!(false);
            config["image_mean"] = json!([0.5, 0.5, 0.5]);
            config["image_std"] = json!([0.5, 0.5, 0.5]);
        }
    }
    config
}

fn processor_config(options: &Options) -> Value {
    let mut config = json!({
        "processor_class": processor_names(options).0,
        "vision_feature_select_strategy": strategy(options.shape),
        "image_token": IMAGE,
    });
    match options.shape {
        Shape::Llava | Shape::Next => {
            config["patch_size"] = json!(vision::PATCH);
            // The class token, which the strategy above drops again.
            config["num_additional_image_tokens"] = json!(1);
        }
        Shape::OneVision => {
            let patches = (vision::image_size(options.shape) / vision::PATCH).pow(2);
            config["num_image_tokens"] = json!(patches);
            config["vision_aspect_ratio"] = json!("anyres_max_9");
        }
    }
    config
}

fn processor_names(options: &Options) -> (&'static str, &'static str) {
    match options.shape {
        Shape::Llava => ("LlavaProcessor", "CLIPImageProcessor"),
        Shape::Next => ("LlavaNextProcessor", "LlavaNextImageProcessor"),
        Shape::OneVision => ("LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor"),
    }
}

fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
}

fn readme(gguf: &Gguf, options: &Options) -> Result<String> {
    let file = gguf.path.file_name().unwrap_or_default().to_string_lossy();
    let name = gguf.string("general.name")?.unwrap_or("no name given");
    let licence = gguf.string("general.license")?.unwrap_or("not stated in the file");
    let layout = match options.shape {
        Shape::Llava => "LLaVA-1.5",
        Shape::Next => "LLaVA-1.6 (AnyRes)",
        Shape::OneVision => "LLaVA-OneVision",
    };
    Ok(format!(
        "# A {layout} folder that cannot see\n\n\
         Assembled by the example `assemble_llava` of bdhs.\n\n\
         - Language model: real, dequantised from `{file}` ({name}; licence: {licence}).\n\
         - Vision tower and projector: **random numbers** (seed {seed}; {layers} layers, width {width}), never trained. \
         The model writes fluent text, but what it says about an image has nothing to do \
         with the image.\n\
         - One row was added to the embedding for `{IMAGE}`: the mean of the others.\n\n\
         Good for trying the tool, for tests and for timings. Not for results of any kind.\n",
        seed = options.seed,
        layers = vision::LAYERS,
        width = vision::HIDDEN,
    ))
}
