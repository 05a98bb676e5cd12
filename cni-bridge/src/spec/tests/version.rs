//! Versions, verbs and the error object.

use super::*;

#[test]
fn every_version_from_0_3_0_to_1_1_0_is_spoken() {
    assert_eq!(CniVersion::names(), ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for version in CniVersion::ALL {
        assert_eq!(CniVersion::negotiate(Some(version.as_str())), Ok(version));
    }
    assert!(CniVersion::ALL.is_sorted());
}

#[test]
fn an_old_unknown_or_absent_version_is_refused_with_both_sides_named() {
    for asked in ["0.1.0", "0.2.0", "1.2.0", "1.1", "", "1.0.0 "] {
        let error = CniVersion::negotiate(Some(asked)).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (1, "incompatible CNI versions"));
        assert!(error.details.contains(&format!("{asked:?}")), "{}", error.details);
        assert!(error.details.contains("\"0.3.0\""), "{}", error.details);
        assert!(error.details.contains("\"1.1.0\""), "{}", error.details);
    }
    assert_eq!(CniVersion::negotiate(None).unwrap_err().code, 1);
}

#[test]
fn a_verb_is_refused_for_configurations_older_than_itself() {
    let oldest = |verb: Verb| CniVersion::ALL.into_iter().find(|v| verb.gate(*v).is_ok());
    assert_eq!(oldest(Verb::Add), Some(CniVersion::V0_3_0));
    assert_eq!(oldest(Verb::Del), Some(CniVersion::V0_3_0));
    assert_eq!(oldest(Verb::Check), Some(CniVersion::V0_4_0));
    assert_eq!(oldest(Verb::Status), Some(CniVersion::V1_1_0));
    assert_eq!(oldest(Verb::Gc), Some(CniVersion::V1_1_0));
    let error = Verb::Check.gate(CniVersion::V0_3_1).unwrap_err();
    assert_eq!(error.code, code::INCOMPATIBLE_VERSION);
    assert!(error.details.contains("0.3.1") && error.details.contains("CHECK"));
}

#[test]
fn an_error_object_has_the_keys_of_the_specification() {
    let error = CniError::new(7, "no").with_details("because").with_details("and");
    let golden = json!({"cniVersion": "0.4.0", "code": 7, "msg": "no", "details": "because; and"});
    assert_eq!(error.render(CniVersion::V0_4_0), golden);
    let golden = json!({"cniVersion": "1.1.0", "code": 7, "msg": "no"});
    assert_eq!(CniError::new(7, "no").render(CniVersion::V1_1_0), golden);
}

#[test]
fn a_delegates_error_is_read_and_anything_else_is_none() {
    let error = CniError::new(11, "wait").with_details("busy");
    let bytes = error.render(CniVersion::NEWEST).to_string();
    assert_eq!(CniError::parse(bytes.as_bytes()), Some(error));
    for bytes in ["", "no", "[]", "{}", r#"{"code":"7"}"#, r#"{"code":-1}"#] {
        assert_eq!(CniError::parse(bytes.as_bytes()), None, "{bytes}");
    }
}
