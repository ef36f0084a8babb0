//! What is trained: LoRA pairs and, if asked for, the projector; their start, their files in PEFT's layout.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use serde_json::json;

use super::settings::Settings;
use crate::files::{AtomicFile, write_json};
use crate::models::adapter::{self, canonical, projector_module};
use crate::models::hub::Origin;
use crate::models::lora::{Lora, Switch, Trainable};
use crate::models::weights::Weights;
use crate::ops::philox::{Draws, Purpose, unit_interval};
use crate::{Error, Result};

/// One trained tensor, f32.
pub(super) struct Parameter {
    /// As in PEFT's file.
    pub name: String,
    pub var: Var,
    /// Of the projector, which has a learning rate of its own.
    pub projector: bool,
}

/// All trained tensors, by name.
pub(super) struct Parameters {
    pub all: Vec<Parameter>,
    pub switch: std::sync::Arc<Switch>,
    /// PEFT's name of the projector, where that is trained.
    projector: Option<&'static str>,
}

impl Parameters {
    /// The parameters for a base model's weights, and the weights with them in place. A is uniform in +-1/sqrt(in), as PEFT
    /// starts it, B is 0: at first the model is its base.
    ///
    /// # Errors
    /// A base without one of the target layers.
    pub fn new(base: Weights, settings: &Settings) -> Result<(Self, Weights)> {
        let switch = Switch::new();
        let mut projector = None;
        let (mut all, mut trainable) = (Vec::new(), Trainable::default());
        let names: Vec<String> = base.names().into_iter().map(str::to_owned).collect();
        // In the order of canonical names: the same for every generation of names.
        let names: BTreeMap<String, String> =
            names.into_iter().map(|name| (canonical(&name), name)).collect();
        let mut unused = settings.targets.clone();
        for (form, full) in &names {
            let shape = base.shape(full).unwrap_or_default().to_vec();
            if settings.projector
                && let Some(module) = projector_module(form)
            {
                projector = Some(module);
                let var = Var::from_tensor(&base.get_as(&shape, full, DType::F32)?)?;
                trainable.whole.insert(full.clone(), var.as_tensor().clone());
                all.push(Parameter { name: adapter::peft_name(form), var, projector: true });
            }
            let Some(target) = target(form, &settings.targets) else { continue };
            unused.retain(|name| name != target);
            let &[output, input] = shape.as_slice() else { continue };
            let number = trainable.pairs.len() as u32;
            let a = start(settings.seed, number, settings.rank, input)?.to_device(base.device())?;
            let a = Var::from_tensor(&a)?;
            let b = Var::zeros((output, settings.rank), DType::F32, base.device())?;
            let pair = Lora {
                a: a.as_tensor().clone(),
                b: b.as_tensor().clone(),
                scale: settings.alpha / settings.rank as f64,
                dropout: settings.dropout,
                seed: settings.seed,
                number,
                switch: switch.clone(),
            };
            trainable.pairs.insert(full.clone(), pair);
            let module = adapter::peft_name(form.trim_end_matches(".weight"));
            for (side, var) in [("lora_A", a), ("lora_B", b)] {
                let name = format!("{module}.{side}.weight");
                all.push(Parameter { name, var, projector: false });
            }
        }
        if let Some(target) = unused.first() {
            let message = format!("no {target} in the language model, which train.targets names");
            return Err(Error::invalid(base.path(), "", message));
        }
        Ok((Self { all, switch, projector }, base.with_trainable(trainable)))
    }

    /// Sets every parameter from tensors of the same names.
    ///
    /// # Errors
    /// A tensor that is missing, or of another shape.
    pub fn set(&self, tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
        for Parameter { name, var, .. } in &self.all {
            let found = tensors.get(name).filter(|tensor| tensor.shape() == var.shape());
            let tensor = found.ok_or_else(|| {
                let got = tensors.get(name).map(|tensor| tensor.dims().to_vec());
                let message = format!("shape {got:?}, expected {:?}", var.dims());
                Error::invalid(path, format!("tensor {name}"), message)
            })?;
            var.set(&tensor.to_dtype(DType::F32)?.to_device(var.device())?)?;
        }
        Ok(())
    }

    /// Values by name; they change with the parameters.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        let values = self.all.iter();
        values.map(|one| (one.name.clone(), one.var.as_tensor().detach())).collect()
    }

    /// Writes the adapter into `dir`: `adapter_model.safetensors`, then `adapter_config.json`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path, base: &Path, settings: &Settings) -> Result<()> {
        write_tensors(&dir.join(adapter::TENSORS), &self.tensors(), None)?;
        // A base from the hub is named as PEFT names it, so that the adapter is of use elsewhere.
        let origin = Origin::in_cache(base);
        let folder = base.canonicalize().map_err(Error::io(base))?;
        let base = origin.as_ref().map_or(folder, |origin| origin.repo.clone().into());
        let targets = settings.targets.join("|");
        let modules = self.projector.map(|module| [module]);
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": origin.map(|origin| origin.commit),
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "lora_dropout": settings.dropout,
            // The vision tower has layers of the same names.
            "target_modules": format!(r".*language_model.*\.({targets})"),
            "modules_to_save": modules,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "use_rslora": false,
            "use_dora": false,
        });
        write_json(&dir.join(adapter::CONFIG), &config)
    }
}

/// Which of the targets a tensor of the base is the weight of.
fn target<'a>(form: &str, targets: &'a [String]) -> Option<&'a String> {
    let module = form.strip_prefix("language.layers.")?.strip_suffix(".weight")?;
    let last = module.rsplit('.').next()?;
    targets.iter().find(|target| *target == last)
}

/// A pair's A at the start.
fn start(seed: u64, number: u32, rank: usize, input: usize) -> Result<Tensor> {
    let mut words = vec![0; rank * input];
    Draws { seed, sample: 0, attempt: 0 }.fill(Purpose::Start, number, &mut words);
    let bound = 1.0 / (input as f64).sqrt();
    let value = |word| ((2.0 * unit_interval(word) - 1.0) * bound) as f32;
    let values: Vec<f32> = words.into_iter().map(value).collect();
    Ok(Tensor::from_vec(values, (rank, input), &Device::Cpu)?)
}

/// A safetensors file that is there completely or not at all.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &HashMap<String, Tensor>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let on_host: BTreeMap<&String, Tensor> = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<_>>()?;
    let bytes = safetensors::serialize(on_host, metadata)
        .map_err(|error| Error::invalid(path, "", error.to_string()))?;
    let mut file = AtomicFile::create(path)?;
    file.put(&bytes)?;
    file.commit()
}
