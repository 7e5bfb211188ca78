//! The bar of the autoscaler, on load of the built-in workload.

use super::*;
use crate::trace::{Workload, generate};

fn options(members: u32) -> Autoscale {
    Autoscale { autoscale: true, members, days: 2, night: 0.2, keep: 0.85 }
}

#[test]
fn a_scaled_cluster_covers_nearly_as_much_for_less_and_does_not_swing() {
    let options = options(8);
    let requests = generate(Workload { requests: 500, block_tokens: 512, seed: 7 });
    let days = Days { days: options.days, night: options.night, seed: 7, block_tokens: 512 };
    let trace = days.lay_over(requests).expect("it has requests");
    let report = options.compare(&trace, 4000, Strategy::Lru, 512);
    assert!(report.hit_rate_share >= 0.95, "{report}");
    assert!(report.device_hours_share <= 0.7, "{report}");
    assert!(report.turns <= 3 * report.days, "{report}");
    assert!(report.fixed.block_hit_rate > 0.2, "{report}");
}
