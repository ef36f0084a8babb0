//! Gradients against finite differences, for every trained tensor; what is shared changes nothing.

use super::*;

/// A direction of change for a tensor: fixed, of both signs, no two alike.
fn direction(tensor: &Tensor) -> Tensor {
    let n = tensor.elem_count();
    let values: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap()
}

#[test]
fn every_tensor_has_the_gradient_of_finite_differences() {
    for dropout in [0.0, 0.3] {
        let settings = Settings { dropout, ..settings() };
        let mut trainer = trainer(&settings);
        let examples = examples(&trainer);
        trainer.load_adapter(&golden("dpo/adapter")).unwrap();
        let batch: Vec<&Example> = examples[..4].iter().collect();
        let (_, grads) = trainer.gradients(&batch).unwrap();
        let start = trainer.tensors().unwrap();
        assert_eq!(grads.len(), start.len());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter_model.safetensors");
        for (name, grad) in &grads {
            let along = direction(grad);
            let slope: f32 = values(&(grad * &along).unwrap()).iter().sum();
            let mut at = |by: f64| {
                let mut tensors = start.clone();
                let moved = (&tensors[name] + (&along * by).unwrap()).unwrap();
                tensors.insert(name.clone(), moved);
                candle_core::safetensors::save(&tensors, &path).unwrap();
                trainer.load_adapter(folder.path()).unwrap();
                trainer.gradients(&batch).unwrap().0.loss
            };
            let step = 2e-3;
            let measured = (at(step) - at(-step)) / (2.0 * step);
            let slope = f64::from(slope);
            let scale = slope.abs().max(1e-2);
            assert!(
                (measured - slope).abs() <= 0.02 * scale,
                "dropout {dropout}: {name}: {slope} but {measured}"
            );
        }
    }
}

#[test]
fn dropout_is_the_same_when_a_layer_is_computed_again_and_is_none_outside_of_training() {
    let settings = Settings { dropout: 0.5, ..settings() };
    let grads = [true, false].map(|recompute| {
        let mut trainer = trainer(&Settings { recompute, ..settings.clone() });
        let examples = examples(&trainer);
        trainer.load_adapter(&golden("dpo/adapter")).unwrap();
        trainer.gradients(&[&examples[0], &examples[1]]).unwrap()
    });
    assert_eq!(grads[0].0.loss, grads[1].0.loss);
    for (name, grad) in &grads[0].1 {
        assert!(off(grad, &grads[1].1[name]) <= 1e-6 * largest(grad).max(1e-3), "{name}");
    }
    let mut plain = trainer(&Settings { dropout: 0.0, ..settings.clone() });
    let examples = examples(&plain);
    plain.load_adapter(&golden("dpo/adapter")).unwrap();
    let (without, _) = plain.gradients(&[&examples[0], &examples[1]]).unwrap();
    assert!((without.loss - grads[0].0.loss).abs() > 1e-4, "dropout does nothing");
}

#[test]
fn a_fresh_adapter_is_its_base() {
    let mut trainer = trainer(&settings());
    let examples = examples(&trainer);
    let (stats, grads) = trainer.gradients(&[&examples[3]]).unwrap();
    assert!((stats.loss - 2f64.ln()).abs() < 1e-6, "{}", stats.loss);
    // B is 0, so A has no slope yet; B has.
    let of = |part: &str| {
        let found = grads.iter().filter(|(name, _)| name.contains(part));
        found.map(|(_, grad)| largest(grad)).collect::<Vec<_>>()
    };
    assert!(of("lora_A").into_iter().all(|x| x == 0.0));
    assert!(of("lora_B").into_iter().all(|x| x > 0.0));
    assert_eq!(of("lora_B").len(), 14);
    assert!(of("multi_modal_projector").into_iter().all(|x| x > 0.0));
}
