//! `casemate doctor`: what this machine can do, and which boundaries follow.

use clap::Args;

use crate::{Answer, service, table};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Everything as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Answer> {
    let doctor = service::block_on(casemate_host::doctor())?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&doctor)?);
        return Ok(Answer::Yes);
    }
    let mark = |yes| if yes { "yes" } else { "no" }.to_owned();
    let facts = doctor.facts.iter();
    table::print(
        &["THIS MACHINE", "", ""],
        facts.map(|fact| vec![fact.name.to_owned(), mark(fact.ok), fact.detail.clone()]),
    );
    println!();
    let classes = doctor.classes.iter().map(|class| {
        let detail = match class.buildable {
            true => format!("{} {}", class.properties, class.reason),
            false => class.reason.clone(),
        };
        vec![class.boundary.to_string(), mark(class.buildable), detail]
    });
    table::print(&["BOUNDARY", "", ""], classes);
    Ok(Answer::Yes)
}
