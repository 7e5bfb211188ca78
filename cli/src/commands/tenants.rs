//! `kvhive tenants`: lists tenants, makes them, rules them, clears them, ends them.

use super::status::{list, rate, size, text};
use crate::admin::{Admin, Target, Unacknowledged};
use crate::report;
use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use kvhive_config::Bytes;
use kvhive_protocol::Strategy;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// List tenants with what they use; create, rule, show, clear or delete one, or give it another secret
#[derive(Args, Debug)]
pub(crate) struct Tenants {
    #[command(flatten)]
    target: Target,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    /// How long clear, rotate and delete wait for nodes that are silent and may be serving old blocks still, such as 30s; what was
    /// asked for is made all the same [default: as long as they may]
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Create a tenant, with rules of its own if any are given
    ///
    /// Without rules its blocks are kept by each node's strategy, in the room that nobody is promised, and stored as they are.
    #[command(after_help = CREATE_EXAMPLES)]
    Create {
        /// Its name: lower-case letters, digits, '-', '_' and '.'
        name: String,
        #[command(flatten)]
        rules: Rules,
    },
    /// Change some of a tenant's rules; the others stay as they are, and no block is lost
    #[command(after_help = SET_EXAMPLES)]
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        rules: Rules,
        /// How many times as much of a node it gets as a tenant of weight 1, while both want more than there is: 1 to 1000
        /// [default: 1]
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1000))]
        weight: Option<u16>,
        /// Rules that are as for everybody again, separated by commas
        #[arg(long, value_enum, value_delimiter = ',', value_name = "RULE,..")]
        reset: Vec<Rule>,
    },
    /// Show one tenant: its rules, what it uses, how often it hits
    Show {
        /// Its name
        name: String,
    },
    /// End a tenant's era: when this returns, nobody serves its older blocks
    Clear {
        /// Its name
        name: String,
    },
    /// Give a tenant another secret: its blocks go as with a clear, and no key of before says anything of one that comes
    ///
    /// The secret is random and never shown; clients learn it with the cluster map and go on by themselves.
    Rotate {
        /// Its name
        name: String,
    },
    /// Delete a tenant: when this returns, nobody serves its blocks, and its keys of disk tiers are destroyed
    ///
    /// Refused for 'default', for one whose blocks another tenant shares, and for one that an engine is followed for.
    Delete {
        /// Its name
        name: String,
    },
}

const CREATE_EXAMPLES: &str = "Examples:
  kvhive tenants create search --strategy adaptive --device-quota 64GiB
  kvhive tenants create archive --compression-ratio 0.5 --host-quota 1TiB
  kvhive tenants create search-canary --shares-with search";

const SET_EXAMPLES: &str = "Examples:
  kvhive tenants set search --strategy s3-fifo
  kvhive tenants set search --weight 4
  kvhive tenants set search --quantization-bits 8 --reset device-quota,compression-ratio";

/// Rules, as both verbs take them.
#[derive(Args, Debug, Default)]
struct Rules {
    /// What decides which of its blocks leaves: lru, lfu, lru-2, adaptive, arc, lirs, s3-fifo, sieve, w-tinylfu, paged,
    /// compressed or quantized [default: each node's own]
    #[arg(long, value_name = "NAME")]
    strategy: Option<Strategy>,
    /// Bytes of device memory promised to it over the whole cluster, replicas counted, such as 64GiB: a promise, not a ceiling
    #[arg(long, value_name = "SIZE")]
    device_quota: Option<Bytes>,
    /// Bytes of host memory promised to it, likewise
    #[arg(long, value_name = "SIZE")]
    host_quota: Option<Bytes>,
    /// Bytes of the disk tiers promised to it, likewise
    #[arg(long, value_name = "SIZE")]
    disk_quota: Option<Bytes>,
    /// Bits of an element as stored: 4, 8, or 16 for blocks as they are [default: as they are]
    #[arg(long, value_name = "BITS", value_parser = PossibleValuesParser::new(["4", "8", "16"]))]
    quantization_bits: Option<String>,
    /// Stored bytes over raw ones to aim at, from 0.001 to 1: down to 0.7 without loss; bits come before it
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    compression_ratio: Option<f64>,
    /// Another tenant whose blocks it names too: both find what either has stored. Takes no other rule
    #[arg(long, value_name = "TENANT")]
    shares_with: Option<String>,
}

/// A rule, by the name of its option.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    Strategy,
    DeviceQuota,
    HostQuota,
    DiskQuota,
    QuantizationBits,
    CompressionRatio,
    SharesWith,
    Weight,
}

impl Rule {
    const fn field(self) -> &'static str {
        match self {
            Rule::Strategy => "strategy",
            Rule::DeviceQuota => "device_quota_bytes",
            Rule::HostQuota => "host_quota_bytes",
            Rule::DiskQuota => "disk_quota_bytes",
            Rule::QuantizationBits => "quantization_bits",
            Rule::CompressionRatio => "compression_ratio",
            Rule::SharesWith => "shares_with",
            Rule::Weight => "weight",
        }
    }
}

impl Rules {
    fn fields(&self) -> Map<String, Value> {
        let said = [
            (Rule::Strategy, self.strategy.map(|strategy| json!(strategy.name()))),
            (Rule::DeviceQuota, self.device_quota.map(|size| json!(size.0))),
            (Rule::HostQuota, self.host_quota.map(|size| json!(size.0))),
            (Rule::DiskQuota, self.disk_quota.map(|size| json!(size.0))),
            (
                Rule::QuantizationBits,
                self.quantization_bits
                    .as_ref()
                    .map(|bits| json!(bits.parse::<u8>().expect("clap lets 4, 8 and 16 pass"))),
            ),
            (Rule::CompressionRatio, self.compression_ratio.map(|ratio| json!(ratio))),
            (Rule::SharesWith, self.shares_with.as_ref().map(|tenant| json!(tenant))),
        ];
        let said = said.into_iter().filter_map(|(rule, value)| Some((rule.field().to_owned(), value?)));
        said.collect()
    }

    /// Returns the merge patch that sets these and this weight, and resets those.
    fn patch(&self, weight: Option<u16>, reset: &[Rule]) -> Result<Value> {
        let mut fields = self.fields();
        if let Some(weight) = weight {
            fields.insert(Rule::Weight.field().to_owned(), json!(weight));
        }
        for rule in reset {
            let field = rule.field();
            if fields.get(field).is_some_and(|value| !value.is_null()) {
                bail!("{field} is both set and reset: leave one of them out");
            }
            fields.insert(field.to_owned(), Value::Null);
        }
        if fields.is_empty() {
            bail!(
                "nothing to change: give a rule, such as --strategy adaptive, or --reset with the name of one"
            );
        }
        Ok(Value::Object(fields))
    }
}

impl Tenants {
    /// Does what was asked and prints the answer.
    ///
    /// # Errors
    /// When no coordinator answers or the change is refused.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?.waiting(self.wait);
        let answer = match self.ask(&admin) {
            Err(error) if self.json => {
                if let Some(Unacknowledged { problem, .. }) = error.downcast_ref() {
                    report::print_json(problem)?;
                }
                return Err(error);
            }
            answer => answer?,
        };
        if let Some(Verb::Create { rules, .. } | Verb::Set { rules, .. }) = &self.verb
            && let Some(note) = rules.strategy.and_then(shrinks_where)
        {
            eprintln!("{note}");
        }
        self.print(&answer)
    }

    fn ask(&self, admin: &Admin) -> Result<Value> {
        Ok(match &self.verb {
            None => admin.get_list("/v1/tenants", "tenants")?,
            Some(Verb::Create { name, rules }) => {
                let mut fields = rules.fields();
                fields.insert("name".to_owned(), json!(name));
                admin.post("/v1/tenants", &Value::Object(fields))?
            }
            Some(Verb::Set { name, rules, weight, reset }) => {
                admin.patch(&path(name)?, &rules.patch(*weight, reset)?)?
            }
            Some(Verb::Show { name }) => admin.get(&path(name)?)?,
            Some(Verb::Clear { name }) => admin.post(&format!("{}/clear", path(name)?), &json!({}))?,
            Some(Verb::Rotate { name }) => admin.post(&format!("{}/rotate", path(name)?), &json!({}))?,
            Some(Verb::Delete { name }) => {
                admin.delete::<Value>(&path(name)?)?;
                json!({ "deleted": name })
            }
        })
    }

    fn print(&self, answer: &Value) -> Result<()> {
        if self.json {
            return report::print_json(answer);
        }
        match &self.verb {
            None => print_all(answer),
            Some(Verb::Create { name, .. }) => println!("tenant {name} created, id {}", text(answer, "id")),
            Some(Verb::Set { .. } | Verb::Show { .. }) => print_one(answer),
            Some(Verb::Clear { name }) => {
                println!("{}", cleared(name, answer));
            }
            Some(Verb::Rotate { name }) => {
                println!("the secret of tenant {name} is another; {}", cleared(name, answer));
            }
            Some(Verb::Delete { name }) => {
                println!("tenant {name} is deleted: nobody serves its blocks");
            }
        }
        Ok(())
    }
}

/// Reads a ratio as the cluster takes it. What is no number would be sent as none, which resets the rule.
fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| (0.001..=1.0).contains(ratio));
    ratio.ok_or_else(|| "allowed is a number from 0.001 to 1".to_owned())
}

/// Says on which nodes a strategy shrinks blocks, if it is one that does: a node's own file is checked for that, and a tenant's
/// blocks are on all nodes.
fn shrinks_where(strategy: Strategy) -> Option<String> {
    let shrinks = kvhive_config::SHRINKING_STRATEGIES.contains(&strategy.name());
    shrinks.then(|| {
        format!(
            "note: {strategy} shrinks blocks on nodes with two block_sizes or more; on those with one it only ranks them \
             (`kvhive config` shows them)"
        )
    })
}

/// Says what a clear came to.
fn cleared(name: &str, answer: &Value) -> String {
    let era = text(answer, "era");
    match answer["shares_with"].as_str() {
        Some(pool) => format!(
            "tenant {name} cleared: nobody serves blocks of its own older than era {era}; those of {pool}, which it \
             shares, stay: clear {pool} for all who share it"
        ),
        None => format!("tenant {name} cleared: nobody serves blocks older than era {era}"),
    }
}

/// Returns a tenant's route. What is no name would name another route.
fn path(name: &str) -> Result<String> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(is_plain) {
        bail!("{name:?} is no tenant's name: names are of a-z 0-9 - _ . and begin with a letter or digit");
    }
    Ok(format!("/v1/tenants/{name}"))
}

fn print_all(answer: &Value) {
    let columns = [
        "TENANT",
        "ID",
        "ERA",
        "STRATEGY",
        "DEVICE QUOTA",
        "HOST QUOTA",
        "DISK QUOTA",
        "USED",
        "BLOCKS",
        "HIT RATE",
    ];
    let mut table = report::table(&columns);
    for one in list(&answer["tenants"]) {
        let strategy = match one["shares_with"].as_str() {
            Some(pool) => format!("shares {pool}'s blocks"),
            None => text(one, "strategy"),
        };
        table.add_row([
            text(one, "name"),
            text(one, "id"),
            text(one, "era"),
            strategy,
            size(one, "device_quota_bytes"),
            size(one, "host_quota_bytes"),
            size(one, "disk_quota_bytes"),
            size(one, "used_bytes"),
            text(one, "blocks"),
            rate(one, "hit_rate"),
        ]);
    }
    report::print_table(&table);
}

fn print_one(tenant: &Value) {
    let codec = match (tenant["quantization_bits"].as_u64(), tenant["compression_ratio"].as_f64()) {
        (Some(bits), _) => format!("{bits} bits"),
        (None, Some(ratio)) => format!("to {ratio} of their size"),
        (None, None) => "as they are".to_owned(),
    };
    let mut table = report::table(&["TENANT", &text(tenant, "name")]);
    for (name, value) in [
        ("id", text(tenant, "id")),
        ("era", text(tenant, "era")),
        ("shares the blocks of", text(tenant, "shares_with")),
        ("strategy", text(tenant, "strategy")),
        ("device quota", size(tenant, "device_quota_bytes")),
        ("host quota", size(tenant, "host_quota_bytes")),
        ("disk quota", size(tenant, "disk_quota_bytes")),
        ("weight", text(tenant, "weight")),
        ("blocks are stored", codec),
        ("stored bytes of raw ones", rate(tenant, "stored_ratio")),
        ("used, device", size(tenant, "device_used_bytes")),
        ("used, host", size(tenant, "host_used_bytes")),
        ("used, disk", size(tenant, "disk_used_bytes")),
        ("used, all tiers", size(tenant, "used_bytes")),
        ("blocks", text(tenant, "blocks")),
        ("hit rate", rate(tenant, "hit_rate")),
        ("keys matched", text(tenant, "matched_keys")),
        ("blocks stored", text(tenant, "stored_blocks")),
        ("blocks evicted", text(tenant, "evicted_blocks")),
        ("blocks refused", text(tenant, "refused_blocks")),
    ] {
        table.add_row([name, &value]);
    }
    report::print_table(&table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        tenants: Tenants,
    }

    fn patch(options: &[&str]) -> Result<Value> {
        let line = ["kvhive", "set", "acme"].iter().chain(options);
        match Line::try_parse_from(line)?.tenants.verb {
            Some(Verb::Set { rules, weight, reset, .. }) => rules.patch(weight, &reset),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_become_a_merge_patch_of_what_they_name() {
        let options = [
            "--strategy",
            "w-tinylfu",
            "--device-quota",
            "8GiB",
            "--disk-quota",
            "1TiB",
            "--quantization-bits",
            "4",
            "--reset",
            "host-quota,shares-with",
            "--weight",
            "4",
        ];
        let expected = json!({"strategy": "w-tinylfu", "device_quota_bytes": 8_u64 << 30,
            "disk_quota_bytes": 1_u64 << 40, "quantization_bits": 4, "host_quota_bytes": null, "shares_with": null, "weight": 4});
        assert_eq!(patch(&options).expect("they make sense"), expected);
    }

    #[test]
    fn a_strategy_that_shrinks_says_on_which_nodes_it_does() {
        let notes = Strategy::ALL.map(|strategy| (strategy, shrinks_where(strategy)));
        let noted = notes.into_iter().filter_map(|(strategy, note)| Some((strategy, note?)));
        let noted: Vec<_> = noted.collect();
        assert_eq!(
            noted.iter().map(|(one, _)| *one).collect::<Vec<_>>(),
            [Strategy::Compressed, Strategy::Quantized]
        );
        assert!(noted.iter().all(|(_, note)| note.contains("two block_sizes or more")));
    }

    #[test]
    fn a_clear_of_a_tenant_that_shares_says_what_it_has_not_cleared() {
        let alone = cleared("acme", &json!({"era": 3, "shares_with": null}));
        assert_eq!(alone, "tenant acme cleared: nobody serves blocks older than era 3");
        let shares = cleared("guest", &json!({"era": 2, "shares_with": "acme"}));
        assert!(shares.contains("of its own older than era 2") && shares.contains("clear acme"), "{shares}");
    }

    #[test]
    fn options_that_make_no_sense_are_refused_before_anybody_is_asked() {
        for (options, says) in [
            (&[][..], "nothing to change"),
            (&["--strategy", "lru", "--reset", "strategy"][..], "strategy is both set and reset"),
            (&["--strategy", "belady"][..], "there are lru"),
            (&["--device-quota", "8"][..], "a size needs a unit"),
            (&["--quantization-bits", "7"][..], "[possible values: 4, 8, 16]"),
            (&["--reset", "era"][..], "device-quota"),
            (&["--weight", "0"][..], "1..=1000"),
            (&["--weight", "2", "--reset", "weight"][..], "weight is both set and reset"),
            (&["--compression-ratio", "nan"][..], "from 0.001 to 1"),
            (&["--compression-ratio", "inf"][..], "from 0.001 to 1"),
            (&["--compression-ratio", "0"][..], "from 0.001 to 1"),
            (&["--compression-ratio", "1.01"][..], "from 0.001 to 1"),
        ] {
            let error = patch(options).expect_err("it makes no sense").to_string();
            assert!(error.contains(says), "{options:?}: {error}");
        }
        for name in ["", "../cluster", "a/b", "A", "a b", "."] {
            assert!(path(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_help_names_every_strategy() {
        let mut text = String::new();
        let command = <Line as clap::CommandFactory>::command();
        for verb in ["create", "set"] {
            let verb = command.find_subcommand(verb).expect("it is there");
            text.push_str(&verb.clone().render_long_help().to_string().replace('\n', " "));
        }
        for strategy in Strategy::ALL {
            assert!(text.matches(strategy.name()).count() >= 2, "{strategy}");
        }
    }
}
