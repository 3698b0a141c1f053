//! Options of datasets on the hub, and the step that resolves ids to files before a command runs.

use anyhow::Result;
use clap::Args;

use super::{Command, SplitArg};
use crate::data::Split;
use crate::hub::{self, Wanted};
use crate::ui;

/// Options of a dataset on the hub. `--revision` belongs to the model.
#[derive(Clone, Debug, Default, Args)]
pub struct DataHubArgs {
    /// Config of a dataset on the hub, if it has several
    #[arg(long, value_name = "NAME")]
    pub data_config: Option<String>,
    /// Branch, tag or commit of a dataset on the hub [default: main]
    #[arg(long, value_name = "REVISION")]
    pub data_revision: Option<String>,
}

impl Command {
    /// Finds the data and the model of the command and downloads what is on the hub. The data come first: most mistakes
    /// are in the data, and a model takes longer to download.
    ///
    /// # Errors
    /// Returns the errors of [`hub::locate_data`] and [`hub::locate`].
    pub fn locate(&mut self) -> Result<()> {
        self.locate_data()?;
        self.locate_model()
    }

    fn locate_data(&mut self) -> Result<()> {
        let (data, wanted, output) = match self {
            Command::Rank(args) => (&mut args.data, Wanted::Measured, &args.output),
            Command::Train(args) => {
                (&mut args.data, Wanted::Trained { validates: args.eval_data.is_none() }, &args.output)
            }
            Command::Compare(args) => {
                (&mut args.data, Wanted::Trained { validates: args.eval_data.is_none() }, &args.output)
            }
            Command::Eval(args) => (&mut args.data, Wanted::Evaluated(args.split.map(Split::from)), &args.output),
            Command::Predict(args) => {
                if !args.reads_stdin() {
                    let (config, revision) = (args.hub.data_config.as_deref(), args.hub.data_revision.as_deref());
                    let wanted = Wanted::Evaluated(args.split.map(Split::from));
                    args.data = hub::locate_data(&args.data, config, revision, wanted, args.output.quiet)?;
                }
                return Ok(());
            }
            Command::Plan(_)
            | Command::Generate(_)
            | Command::Merge(_)
            | Command::Export(_)
            | Command::Id(_)
            | Command::Devices(_) => return Ok(()),
        };
        let (config, revision) = (data.hub.data_config.as_deref(), data.hub.data_revision.as_deref());
        let located = hub::locate_data(&data.data, config, revision, wanted, output.quiet)?;
        if located != data.data {
            data.id = Some(std::mem::replace(&mut data.data, located));
        }
        Ok(())
    }

    fn locate_model(&mut self) -> Result<()> {
        let (model, output) = match self {
            Command::Rank(args) => (&mut args.model, &args.output),
            Command::Train(args) => (&mut args.model, &args.output),
            Command::Plan(args) => (&mut args.model, &args.output),
            Command::Compare(args) => (&mut args.model, &args.output),
            Command::Eval(args) => (&mut args.model, &args.output),
            Command::Predict(args) => (&mut args.model, &args.output),
            Command::Generate(args) => (&mut args.model, &args.output),
            Command::Merge(args) => (&mut args.model, &args.output),
            Command::Export(args) => (&mut args.model, &args.output),
            Command::Id(_) | Command::Devices(_) => return Ok(()),
        };
        ui::set_quiet(output.quiet);
        model.path = hub::locate(&model.name, model.revision.as_deref(), output.quiet)?;
        Ok(())
    }
}

impl From<SplitArg> for Split {
    fn from(split: SplitArg) -> Self {
        match split {
            SplitArg::Train => Split::Train,
            SplitArg::Validation => Split::Validation,
            SplitArg::Test => Split::Test,
        }
    }
}
