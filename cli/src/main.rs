//! Casemate for people: run, verify, measure, prove.

fn main() {}
