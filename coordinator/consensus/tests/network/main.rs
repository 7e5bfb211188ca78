//! Peers on a network that loses, repeats, delays and reorders, with disks that finish late and forget what was not
//! synced. Everything follows from one seed.

mod chaos;
mod founding;
mod hostile;
mod members;
mod net;
mod rules;
mod transfer;
