//! A body as its document says: an object. What reads structs takes lists of their fields too, by their order, and nobody means that.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// What was read of an object, and of nothing else.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(body: D) -> Result<Object<T>, D::Error> {
        body.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, PartialEq, Debug)]
    #[serde(deny_unknown_fields)]
    struct Patch {
        size: Option<u32>,
    }

    #[test]
    fn a_list_of_the_fields_is_no_object() {
        let read = |text| serde_json::from_str::<Object<Patch>>(text).map(|object| object.0);
        assert_eq!(read(r#"{"size": 3}"#).expect("it is one"), Patch { size: Some(3) });
        for (text, said) in
            [("[3]", "an object"), ("null", "an object"), (r#"{"length": 3}"#, "unknown field")]
        {
            let refused = read(text).expect_err(text).to_string();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
