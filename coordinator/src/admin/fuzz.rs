//! What operators send, as far as it is read before anybody is asked. For `kvhive-fuzz` alone.

use super::answers::{Consistency, SlotQuery};
use super::balance::BalanceOrder;
use super::check_blocks::BlocksAsked;
use super::drains::DrainQuery;
use super::engines::{NewEngine, OneLoad};
use super::events::EventQuery;
use super::members::MemberPatch;
use super::object::Object;
use super::page::{Listing, NamedListing, NamedPart, Part};
use super::pins::{NewPin, PinQuery};
use super::raft::{NewMember, Promotion, Transfer};
use super::route::RouteAsked;
use super::scaling::{PolicyPatch, Size};
use super::tenants::{NewTenant, TenantPatch};
use super::traces::HowMany;
use axum::extract::Query;
use axum::http::Uri;
use serde::de::DeserializeOwned;

fn body<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice::<Object<T>>(bytes).ok().map(|object| object.0)
}

/// Reads a body of each route that takes one; says how many take it.
pub fn admin_body(bytes: &[u8]) -> usize {
    let taken = [
        body::<BalanceOrder>(bytes).is_some(),
        body::<BlocksAsked>(bytes).is_some(),
        body::<NewEngine>(bytes).is_some(),
        body::<OneLoad>(bytes).is_some_and(|load| load.load().is_ok()),
        body::<MemberPatch>(bytes).is_some(),
        body::<NewPin>(bytes).is_some(),
        body::<Transfer>(bytes).is_some(),
        body::<NewMember>(bytes).is_some(),
        body::<Promotion>(bytes).is_some(),
        body::<RouteAsked>(bytes).is_some_and(|asked| asked.request().is_ok()),
        body::<PolicyPatch>(bytes).is_some_and(|patch| patch.check().is_ok()),
        body::<Size>(bytes).is_some(),
        body::<NewTenant>(bytes).is_some(),
        body::<TenantPatch>(bytes).is_some(),
    ];
    taken.into_iter().filter(|taken| *taken).count()
}

/// Reads a query of each route that takes one; says how many take it.
pub fn admin_query(text: &str) -> usize {
    let Ok(uri) = format!("/v1/anything?{text}").parse::<Uri>() else { return 0 };
    fn takes<T: DeserializeOwned>(uri: &Uri) -> bool {
        Query::<T>::try_from_uri(uri).is_ok()
    }
    let taken = [
        takes::<Consistency>(&uri),
        takes::<SlotQuery>(&uri),
        takes::<DrainQuery>(&uri),
        takes::<EventQuery>(&uri),
        takes::<Listing>(&uri),
        takes::<NamedListing>(&uri),
        takes::<NamedPart>(&uri),
        takes::<Part>(&uri),
        takes::<PinQuery>(&uri),
        takes::<HowMany>(&uri),
    ];
    taken.into_iter().filter(|taken| *taken).count()
}
