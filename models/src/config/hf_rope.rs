//! RoPE's settings in a `config.json`.

use super::family::Family::{self, *};
use super::fields::Fields;
use super::{Rope, RopeScaling};
use crate::ModelError;

/// The RoPE tables of a checkpoint: one, or Gemma 3's two (of its full and of its sliding layers).
pub(super) fn read(
    family: Family,
    f: &Fields<'_>,
    head_dim: usize,
    max_position: usize,
) -> Result<Vec<Rope>, ModelError> {
    let theta = match family {
        Mixtral => 1e6,
        SmolLm3 => 2e6,
        _ => 1e4,
    };
    let top = Top { family, f, head_dim, max_position };
    let parameters = f.object("rope_parameters", "rope_parameters.")?;
    let scaling = f.object("rope_scaling", "rope_scaling.")?;
    let own = f.float("rope_theta")?;
    if family == Gemma3 {
        // Sliding layers have a base of their own and are never scaled in transformers 4's spelling.
        let local = f.float("rope_local_base_freq")?.unwrap_or(1e4);
        let nested = parameters.filter(|p| p.has("full_attention") || p.has("sliding_attention"));
        let (full, sliding) = match nested {
            Some(p) => (
                p.object("full_attention", "rope_parameters.full_attention.")?,
                p.object("sliding_attention", "rope_parameters.sliding_attention.")?,
            ),
            None => (scaling.or(parameters), None),
        };
        return Ok(vec![top.rope(full, own.unwrap_or(1e6))?, top.rope(sliding, local)?]);
    }
    let settings = match parameters {
        // Keyed by layer type, though all the types of these families share one table.
        Some(p) if p.has("full_attention") || p.has("sliding_attention") => {
            let full = p.object("full_attention", "rope_parameters.full_attention.")?;
            let sliding = p.object("sliding_attention", "rope_parameters.sliding_attention.")?;
            if let (Some(full), Some(sliding)) = (full, sliding)
                && top.rope(Some(full), theta)? != top.rope(Some(sliding), theta)?
            {
                return Err(f.unsupported("rope_parameters", "a table for each layer type", ""));
            }
            full.or(sliding)
        }
        other => scaling.or(other),
    };
    Ok(vec![top.rope(settings, own.unwrap_or(theta))?])
}

/// The configuration around a table's settings.
struct Top<'a> {
    family: Family,
    f: &'a Fields<'a>,
    head_dim: usize,
    max_position: usize,
}

impl Top<'_> {
    fn rope(&self, settings: Option<Fields<'_>>, theta: f32) -> Result<Rope, ModelError> {
        let s = settings.unwrap_or(*self.f);
        let kind = match settings {
            None => "default",
            Some(s) => match s.string("rope_type")? {
                Some(kind) => kind,
                None => s.string("type")?.unwrap_or("default"),
            },
        };
        let theta = match settings {
            Some(s) => s.float("rope_theta")?.unwrap_or(theta),
            None => theta,
        };
        let dim = self.dim(&s)?;
        let need = |key: &str| s.require(key, s.float(key)?);
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low: need("low_freq_factor")?,
                high: need("high_freq_factor")?,
                original: self.original(&s)? as f32,
            },
            // Phi-3's early files call LongRoPE so.
            "longrope" | "su" => self.long(&s, dim)?,
            "yarn" if self.family == Phi3 => self.long(&s, dim)?,
            "yarn" => {
                let original = self.original(&s)?;
                let factor = s.float("factor")?.unwrap_or(self.max_position as f32 / original as f32);
                RopeScaling::Yarn {
                    factor,
                    beta_fast: s.float("beta_fast")?.filter(|beta| *beta != 0.0).unwrap_or(32.0),
                    beta_slow: s.float("beta_slow")?.filter(|beta| *beta != 0.0).unwrap_or(1.0),
                    original: original as f32,
                    truncate: s.bool("truncate")?.unwrap_or(true),
                    attention_factor: yarn_attention_factor(&s, factor)?,
                }
            }
            other => {
                let hint = "; supported are default, linear, llama3, longrope and yarn";
                return Err(s.unsupported("rope_type", other, hint));
            }
        };
        Ok(Rope { dim, theta, scaling })
    }

    /// Rotated dimensions of a head.
    fn dim(&self, s: &Fields<'_>) -> Result<usize, ModelError> {
        let key = "partial_rotary_factor";
        let part = s.float(key)?.or(self.f.float(key)?).unwrap_or(1.0);
        if part != 1.0 && self.family != Phi3 {
            return Err(self.f.unsupported(key, part, " for this architecture"));
        }
        Ok((self.head_dim as f64 * f64::from(part)) as usize)
    }

    /// The context first trained for. A field beside the table comes before one in it.
    fn original(&self, s: &Fields<'_>) -> Result<usize, ModelError> {
        let key = "original_max_position_embeddings";
        let default = if self.family == Phi3 { Some(4096) } else { None };
        Ok(self.f.unsigned(key)?.or(default).or(s.unsigned(key)?).unwrap_or(self.max_position))
    }

    fn long(&self, s: &Fields<'_>, dim: usize) -> Result<RopeScaling, ModelError> {
        let divisors = |key: &str| {
            let list = s.require(key, s.floats(key)?)?;
            if list.len() != dim / 2 || list.iter().any(|divisor| *divisor <= 0.0) {
                return Err(s.wrong(key, format!("it needs {} positive numbers", dim / 2)));
            }
            Ok(list.into())
        };
        let original = self.original(s)?;
        let attention_factor = match s.float("attention_factor")? {
            Some(factor) => factor,
            None => {
                let ratio = self.max_position as f64 / original as f64;
                let factor = s.float("factor")?.map_or(ratio, f64::from);
                match factor > 1.0 {
                    true => (1.0 + factor.ln() / (original as f64).ln()).sqrt() as f32,
                    false => 1.0,
                }
            }
        };
        Ok(RopeScaling::Long {
            short: divisors("short_factor")?,
            long: divisors("long_factor")?,
            original,
            attention_factor,
        })
    }
}

fn yarn_attention_factor(s: &Fields<'_>, factor: f32) -> Result<f32, ModelError> {
    if let Some(given) = s.float("attention_factor")? {
        return Ok(given);
    }
    let scale = |multiplier: f64| match factor > 1.0 {
        true => 0.1 * multiplier * f64::from(factor).ln() + 1.0,
        false => 1.0,
    };
    let set = |key: &str| Ok::<_, ModelError>(s.float(key)?.filter(|value| *value != 0.0).map(f64::from));
    Ok(match (set("mscale")?, set("mscale_all_dim")?) {
        (Some(mscale), Some(all)) => (scale(mscale) / scale(all)) as f32,
        _ => scale(1.0) as f32,
    })
}
