//! Pins, as a device actor hears of them: by the map, and by the wall clock, which ends those that are soft.

use super::core::DeviceCore;
use crate::rules;
use crate::view::Serving;
use kvhive_protocol::DeviceId;

impl DeviceCore {
    /// Takes over what is pinned here now.
    pub(super) fn adopt_pins(&mut self, serving: &Serving) {
        let device = DeviceId::new(serving.member, self.index);
        let (pinned, ends_ms) = rules::pinned(&serving.map, device, kvhive_runtime::wall_ms());
        self.pins_end_ms = ends_ms;
        self.shard.set_pinned(pinned);
    }

    /// Lets go of pins that have ended.
    pub(super) fn end_pins(&mut self) {
        if self.pins_end_ms.is_some_and(|end| end <= kvhive_runtime::wall_ms())
            && let Some(serving) = self.view.serving()
        {
            self.adopt_pins(&serving);
        }
    }
}
