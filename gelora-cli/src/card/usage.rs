//! How to use the adapter: code for PEFT, and commands of gelora, as they would be typed.

use std::path::Path;

use super::escape::{code, quoted, shell, shell_path};
use super::{Card, CardData, CardTask};

impl Card<'_> {
    pub(super) fn usage(&self) -> String {
        let language = match self.task {
            CardTask::LanguageModel { .. } => self.lm_code(),
            CardTask::Classification(_) | CardTask::MultiLabel(_) | CardTask::Regression => self.classifier_code(),
        };
        format!(
            "## How to use it\n\nIn Python, with transformers and PEFT:\n\n{}\nWith gelora:\n\n{}\n",
            code("python", &language),
            code("sh", &self.commands())
        )
    }

    /// Returns the base model for Python: its id or folder, and the name of a .gguf file in it.
    pub(super) fn base(&self) -> (String, Option<String>) {
        let typed = self.model.display().to_string();
        let is_file = self.model.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        if !is_file {
            return (typed, None);
        }
        // `org/name/FILE.gguf` is a file of the repository `org/name`.
        let (folder, file) = match self.is_on_hub {
            true => {
                let end = typed.match_indices('/').nth(1).map_or(typed.len(), |(end, _)| end);
                (typed[..end].to_owned(), typed[end..].trim_start_matches('/').to_owned())
            }
            false => {
                let folder = self.model.parent().filter(|folder| *folder != Path::new(""));
                let file = self.model.file_name().unwrap_or_default().to_string_lossy();
                (folder.map_or(".".into(), |folder| folder.display().to_string()), file.into_owned())
            }
        };
        (folder, Some(file))
    }

    /// Returns the arguments of `from_pretrained` for the base model.
    fn base_arguments(&self) -> String {
        let file = self.base().1.map_or(String::new(), |file| format!(", gguf_file={}", quoted(&file)));
        let revision = self.revision.as_ref().map_or(String::new(), |name| format!(", revision={}", quoted(name)));
        format!("base{file}{revision}")
    }

    fn classifier_code(&self) -> String {
        let (base, out, arguments) =
            (quoted(&self.base().0), quoted(&self.out.display().to_string()), self.base_arguments());
        let texts = if self.has_pairs { "\"The first text.\", \"The second text.\"" } else { "\"A text.\"" };
        let list = |labels: &[String]| {
            let names: Vec<String> = labels.iter().map(|label| quoted(label)).collect();
            format!("labels = [{}]\n", names.join(", "))
        };
        let (labels, outputs, last) = match &self.task {
            CardTask::Classification(labels) => {
                let last = "print(labels[logits.argmax().item()], logits.softmax(-1).tolist())";
                (list(labels), labels.len(), last)
            }
            CardTask::MultiLabel(labels) => {
                let last =
                    "print([name for name, logit in zip(labels, logits) if logit > 0], logits.sigmoid().tolist())";
                (list(labels), labels.len(), last)
            }
            _ => (String::new(), 1, "print(logits.item())"),
        };
        format!(
            "import torch\nfrom peft import PeftModel\n\
             from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
             base = {base}\n{labels}\
             model = AutoModelForSequenceClassification.from_pretrained({arguments}, num_labels={outputs})\n\
             model = PeftModel.from_pretrained(model, {out}).eval()\n\
             tokenizer = AutoTokenizer.from_pretrained({arguments})\n\
             inputs = tokenizer({texts}, truncation=True, max_length={}, return_tensors=\"pt\")\n\
             with torch.no_grad():\n    logits = model(**inputs).logits[0]\n{last}\n",
            self.max_length
        )
    }

    fn lm_code(&self) -> String {
        let (base, out, arguments) =
            (quoted(&self.base().0), quoted(&self.out.display().to_string()), self.base_arguments());
        format!(
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             base = {base}\n\
             model = AutoModelForCausalLM.from_pretrained({arguments})\n\
             model = PeftModel.from_pretrained(model, {out}).eval()\n\
             tokenizer = AutoTokenizer.from_pretrained({arguments})\n\
             inputs = tokenizer(\"The beginning of a text\", return_tensors=\"pt\")\n\
             output = model.generate(**inputs, max_new_tokens=64, do_sample=False)\n\
             print(tokenizer.decode(output[0], skip_special_tokens=True))\n"
        )
    }

    /// Returns the commands, one a line.
    fn commands(&self) -> String {
        let revision = self.revision.as_ref().map_or(String::new(), |name| format!(" --revision {}", shell(name)));
        let model = format!("{}{revision}", shell_path(&self.model));
        let out = shell_path(&self.out);
        let data = |data: &CardData, options: &[String]| {
            let options: String = options.iter().map(|option| format!(" {}", shell(option))).collect();
            format!("--data {}{options}", shell_path(&data.path))
        };
        let mut lines = Vec::new();
        if let Some(rows) = &self.held_out {
            lines.push(format!("gelora eval {model} --adapter {out} {}", data(rows, &rows.eval_options)));
        }
        match self.task {
            CardTask::LanguageModel { prompt } => {
                lines.push(format!("gelora generate {model} --adapter {out} {prompt} 'The beginning of a text'"));
            }
            CardTask::Classification(_) | CardTask::MultiLabel(_) | CardTask::Regression => {
                let rows = self.held_out.as_ref().unwrap_or(&self.train);
                lines.push(format!("gelora predict {model} --adapter {out} {}", data(rows, &rows.predict_options)));
            }
        }
        let merged = self.out.with_file_name(format!("{}-merged", self.out.file_name().unwrap_or_default().display()));
        lines.push(format!("gelora merge {model} --adapter {out} --out {}", shell_path(&merged)));
        lines.join("\n")
    }
}
