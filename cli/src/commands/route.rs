//! `kvhive route`: which engine should take a request, and why.

use super::prompt::{hashes, read, tokens};
use super::status::{list, text};
use crate::admin::Target;
use crate::report;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Say which engine should take a request: by what its own cache and kvhive have of the prompt, and by how busy it is
///
/// A cost is what computing so many tokens would cost. What is cached costs a part of computing it, by where it is; requests that
/// run or wait at an engine cost what they are weighed at. `kvhive engines` shows who is followed.
#[derive(Args, Debug)]
pub(crate) struct Route {
    #[command(flatten)]
    target: Target,
    /// File with the prompt's tokens: a JSON array, or numbers between spaces, commas or lines; `-` for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "hashes_file")]
    tokens_file: Option<PathBuf>,
    /// File with the engine's hashes of the prompt's full blocks instead, as hexadecimal or as numbers
    #[arg(long, value_name = "FILE", conflicts_with = "tokens_file")]
    hashes_file: Option<PathBuf>,
    /// Tokens of the whole prompt, where hashes are given
    #[arg(long, value_name = "N", requires = "hashes_file")]
    prompt_tokens: Option<u32>,
    /// Engines that may take it, separated by commas [default: all whose events arrive]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    candidates: Vec<String>,
    /// Only engines that serve this model
    #[arg(long)]
    model: Option<String>,
    /// The adapter (LoRA) that computes it
    #[arg(long, conflicts_with = "hashes_file")]
    adapter: Option<String>,
    /// What keeps the prompt apart from other users' (`cache_salt`)
    #[arg(long, conflicts_with = "hashes_file")]
    salt: Option<String>,
    /// What something costs: engine_host, engine_disk, hive_local, hive_memory, hive_disk (a token, in thousandths of computing it),
    /// running, waiting (a request, in tokens), kv_usage (a full cache, in tokens)
    #[arg(long = "weight", value_name = "NAME=NUMBER", value_parser = weight)]
    weights: Vec<(String, u32)>,
    /// How many tokens dearer an engine may be to be chosen e times more rarely; 0 for always the cheapest
    #[arg(long, default_value_t = 0)]
    temperature: u32,
    /// Decides between engines where there is a temperature [default: drawn]
    #[arg(long)]
    seed: Option<u64>,
    /// The request goes where the answer says: it counts as waiting there
    #[arg(long)]
    take: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Route {
    /// Asks and prints the answer.
    ///
    /// # Errors
    /// When a file holds no tokens, no coordinator answers, or the question is refused.
    pub(crate) fn run(self) -> Result<()> {
        let answer: Value = self.target.resolve()?.post("/v1/route", &self.question()?)?;
        if self.json {
            return report::print_json(&answer);
        }
        println!("{}\n", verdict(&answer));
        let mut table = report::table(&["ENGINE", "COST", "CHANCE", "WHY"]);
        for one in list(&answer["ranked"]) {
            table.add_row([
                text(one, "engine"),
                format!("{:.1}", one["cost_tokens"].as_f64().unwrap_or_default()),
                format!("{:.1} %", one["chance"].as_f64().unwrap_or_default() * 100.0),
                text(one, "reason"),
            ]);
        }
        report::print_table(&table);
        for one in list(&answer["ranked"]) {
            println!("\n{}", text(one, "engine"));
            let mut table = report::table(&["PART", "AMOUNT", "WEIGHT", "COST"]);
            for term in list(&one["terms"]) {
                let cost = format!("{:.1}", term["cost_tokens"].as_f64().unwrap_or_default());
                table.add_row([text(term, "part"), text(term, "amount"), text(term, "weight"), cost]);
            }
            report::print_table(&table);
        }
        for note in list(&answer["notes"]) {
            println!("\nnote: {}", note.as_str().unwrap_or_default());
        }
        Ok(())
    }

    fn question(&self) -> Result<Value> {
        let mut question = json!({
            "candidates": self.candidates,
            "temperature": self.temperature,
            "take": self.take,
            "weights": self.weights.iter().map(|(name, weight)| (name.clone(), json!(weight))).collect::<Map<_, _>>(),
        });
        for (name, value) in [
            ("model", json!(self.model)),
            ("adapter", json!(self.adapter)),
            ("salt", json!(self.salt)),
            ("seed", json!(self.seed)),
            ("prompt_tokens", json!(self.prompt_tokens)),
        ] {
            if !value.is_null() {
                question[name] = value;
            }
        }
        match (&self.tokens_file, &self.hashes_file) {
            (Some(file), _) => question["tokens"] = json!(tokens(file, &read(file)?)?),
            (None, Some(file)) => question["hashes"] = json!(hashes(file, &read(file)?)?),
            (None, None) => bail!("give --tokens-file or --hashes-file"),
        }
        Ok(question)
    }
}

/// Says who should take it, and where that is a guess, that it is one.
fn verdict(answer: &Value) -> String {
    let engine = text(answer, "engine");
    if answer["heard"] == json!(false) {
        return format!(
            "{engine} is a guess: its events do not arrive, so nobody knows what its own cache holds or whether it runs"
        );
    }
    format!("{engine} should take it")
}

fn weight(text: &str) -> Result<(String, u32), String> {
    let (name, number) = text.split_once('=').ok_or("say NAME=NUMBER")?;
    let number = number.parse().map_err(|_| format!("{number:?} is not a whole number"))?;
    Ok((name.to_owned(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_heard_is_a_guess() {
        let answer = |heard| json!({"engine": "vllm-0", "heard": heard});
        assert_eq!(verdict(&answer(true)), "vllm-0 should take it");
        assert!(verdict(&answer(false)).starts_with("vllm-0 is a guess: its events do not arrive"));
    }

    #[test]
    fn a_weight_is_a_name_and_a_number() {
        assert_eq!(weight("running=5"), Ok(("running".to_owned(), 5)));
        assert!(weight("running").is_err() && weight("running=x").is_err());
    }
}
