//! `gelora rank`: measure, and write what the ranks came from.

use anyhow::{Result, bail};
use gelora_kernels::DType;
use gelora_lora::ranks::Policy;
use gelora_lora::{CONFIG_NAME, files};
use gelora_model::Encoder;

use super::measure::{self, LimitsUsed, PolicyUsed, Ranks};
use super::{check_model, check_not_input, open_device, open_tokenizer};
use crate::args::{PolicyArg, RankArgs};
use crate::data;
use crate::output::OutDir;
use crate::plot::id_profile_svg;
use crate::profile::mark;
use crate::ui::{self, TableStyle};

/// Its files.
pub const RANKS_NAME: &str = "ranks.json";
const PROFILE_NAME: &str = "id_profile.svg";

pub fn run(args: &RankArgs) -> Result<()> {
    check_model(&args.model)?;
    let out = OutDir::prepare(&args.out, &[RANKS_NAME, CONFIG_NAME, PROFILE_NAME], "--out")?;
    let dataset = data::read(&args.data.data, None, &(&args.data).into())?;
    mark("data read");
    let mut encoder = Encoder::load(&args.model)?;
    encoder.compute_in(args.dtype.into())?;
    encoder.move_to(&open_device(args.device)?)?;
    mark("model loaded");
    let policy = match (args.policy, args.rank) {
        (Some(PolicyArg::Gelora), Some(_)) => {
            bail!("--rank is the rank of --policy fixed; expected only one of the two")
        }
        (_, Some(rank)) => Policy::Fixed { rank },
        _ => Policy::Gelora { rounding: args.measure.rounding.into() },
    };
    let ranks = measure_ranks(args, &encoder, &dataset, &policy)?;

    out.write_json(RANKS_NAME, &ranks)?;
    measure::peft_config(&encoder, &args.model, &ranks.modules)?.write(&out.file(CONFIG_NAME))?;
    out.write(PROFILE_NAME, profile(&ranks)?.as_bytes())?;
    if args.output.json {
        return Ok(ui::result(serde_json::to_string(&ranks)?)?);
    }
    ui::result(table(&ranks))?;
    ui::result(summary(&ranks))?;
    ui::note(
        args.output.quiet,
        format!("written: {}/{{{RANKS_NAME}, {CONFIG_NAME}, {PROFILE_NAME}}}", args.out.display()),
    );
    Ok(())
}

/// The whole measurement; also writes the points if they are asked for.
pub fn measure_ranks(args: &RankArgs, encoder: &Encoder, dataset: &data::Dataset, policy: &Policy) -> Result<Ranks> {
    let config = encoder.config();
    let quiet = args.output.quiet;
    // What can be wrong with the options is said before the model runs.
    gelora_lora::ranks::assign(&[0.0, 0.0], policy, args.targets.alpha_ratio, measure::limits(&args.measure))?;
    measure::targets(&encoder.linear_infos(), &args.targets)?;
    if let Some(path) = &args.points {
        check_not_input(path, "--points", &[&args.model, &dataset.path])?;
    }
    let tokenizer = open_tokenizer(&args.model, &args.data, config.max_positions, config.vocabulary)?;
    mark("tokenizer loaded");
    let rows = measure::sample(dataset.examples.len(), args.measure.samples, args.seed);
    if rows.len() < 3 {
        anyhow::bail!("{}: {} rows; two nearest neighbours need at least 3", dataset.path.display(), rows.len());
    }
    let encoded = tokenizer.encode_all(rows.iter().map(|&i| &dataset.examples[i]))?;
    mark("tokenised");
    let encoded: Vec<_> = encoded.iter().collect();
    let points = measure::points(encoder, &encoded, args.measure.pool, args.batch_size, args.seed, quiet)?;
    mark("hidden states");
    let states = measure::dimensions(&points, encoder.device(), &args.measure, quiet)?;
    mark("dimensions");
    if let Some(path) = &args.points {
        files::write_tensors(path, points.iter().enumerate().map(|(l, t)| (format!("layer_{l}"), t)))?;
    }
    let (layers, modules, parameters) = measure::assign(encoder, &states, policy, &args.measure, &args.targets)?;
    Ok(Ranks {
        model: args.model.display().to_string(),
        data: dataset.path.display().to_string(),
        pool: format!("{:?}", args.measure.pool).to_lowercase(),
        samples: rows.len(),
        dtype: DType::from(args.dtype).to_string(),
        seed: args.seed,
        policy: PolicyUsed {
            policy: policy.clone(),
            limits: LimitsUsed { min_rank: args.measure.min_rank, max_rank: args.measure.max_rank },
            alpha_ratio: args.targets.alpha_ratio,
        },
        states,
        layers,
        modules,
        parameters,
    })
}

/// The picture of the measurement.
pub fn profile(ranks: &Ranks) -> Result<String> {
    let states: Vec<_> = ranks.states.iter().map(|e| (e.id, e.interval)).collect();
    let bars: Vec<usize> = ranks.layers.iter().map(|l| l.rank).collect();
    id_profile_svg(&states, &bars)
}

/// States and layers, one above the other.
pub fn table(ranks: &Ranks) -> String {
    let percent = ranks.states.first().map_or(95.0, |e| e.confidence * 100.0);
    let interval = format!("{percent} % interval");
    let header = ["state", "id", &interval, "n", "duplicates", "layer", "growth", "rank", "alpha"];
    let mut rows = Vec::new();
    for (l, e) in ranks.states.iter().enumerate() {
        let name = if l == 0 { "embeddings".to_string() } else { format!("after layer {}", l - 1) };
        let constant = e.n == 1;
        let mut row = vec![
            name,
            if constant { "constant".into() } else { format!("{:.2}", e.id) },
            if constant { "-".into() } else { format!("{:.2} .. {:.2}", e.interval[0], e.interval[1]) },
            e.n.to_string(),
            e.duplicates.to_string(),
        ];
        // The layer that this state enters stands on its line.
        row.extend(match ranks.layers.get(l) {
            Some(layer) => [
                layer.layer.to_string(),
                format!("{:+.2}", layer.delta),
                layer.rank.to_string(),
                layer.alpha.to_string(),
            ],
            None => Default::default(),
        });
        rows.push(row);
    }
    ui::table(&header, &rows, TableStyle::of_stdout())
}

/// The measurement in a sentence or two.
pub fn summary(ranks: &Ranks) -> String {
    let mut text = format!(
        "{} modules, {} adapter parameters; measured on {} examples",
        ranks.modules.len(),
        ui::count(ranks.parameters as u64),
        ui::count(ranks.samples as u64)
    );
    let grows = ranks.layers.iter().filter(|l| l.delta > 0.0).count();
    if grows == 0 {
        text.push_str("\nThe dimension grows in no layer: the rule gives every layer its least rank.");
    }
    let unsure =
        |w: &[gelora_id::Estimate]| w[0].interval[1] >= w[1].interval[0] && w[1].interval[1] >= w[0].interval[0];
    let overlapping = ranks.states.windows(2).filter(|w| unsure(w)).count();
    if overlapping > 0 {
        text.push_str(&format!(
            "\nIn {overlapping} of {} layers the intervals before and after overlap: there the growth is within the noise, and more --samples make it surer.",
            ranks.layers.len()
        ));
    }
    text
}
