//! A gateway that serves its operator and ports, in a test.

use std::time::Duration;

use casemate_gateway::{Client, Command, Gateway, Reply};
use casemate_ledger::{Grant, text};

use super::{House, Port, claims};

/// A gateway that serves its operator, with one grant and one port.
pub struct Scene {
    pub house: House,
    pub gateway: std::sync::Arc<Gateway>,
    stop: tokio::sync::watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Scene {
    pub async fn new() -> Self {
        Self::in_house(House::new()).await
    }

    pub async fn in_house(house: House) -> Self {
        let gateway = house.gateway().await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let served = std::sync::Arc::clone(&gateway);
        let serving = tokio::spawn(async move { served.serve(stopped).await.unwrap() });
        let scene = Self { house, gateway, stop, serving };
        let socket = scene.house.directory.join("admin.sock");
        while Client::call(&socket, &Command::Status).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        scene
    }

    pub async fn admin(&self, command: Command) -> Reply {
        Client::call(&self.house.directory.join("admin.sock"), &command).await.unwrap()
    }

    pub async fn add(&self, grant: Grant) -> Reply {
        let grant = text::base64url(&self.house.sign(grant));
        self.admin(Command::GrantAdd { grant }).await
    }

    pub async fn port(&self) -> Port {
        self.house.port(&self.gateway, self.house.authority.identity(claims())).await
    }

    pub async fn with(grant: Grant) -> (Self, Port) {
        Self::with_in(House::new(), grant).await
    }

    pub async fn with_in(house: House, grant: Grant) -> (Self, Port) {
        let scene = Self::in_house(house).await;
        assert!(matches!(scene.add(grant).await, Reply::Done(_)));
        let port = scene.port().await;
        (scene, port)
    }

    /// Stops the gateway and gives the house back.
    pub async fn stop(self) -> House {
        self.stop.send_replace(true);
        self.serving.await.unwrap();
        drop(self.gateway);
        self.house
    }

    /// Starts the gateway again, and connects `port` to it with a renewed certificate.
    pub async fn restart(self, port: Port) -> (Port, Self) {
        let (credential, tools) = (self.house.authority.renewed(port.credential), port.tools);
        let (sequence, previous) = (port.sequence, port.previous);
        drop(port.wire);
        let scene = Self::in_house(self.stop().await).await;
        let wire = scene.house.connect(&scene.gateway, &credential).await;
        let mut port = Port::hello(wire, credential, sequence, previous).await.unwrap();
        port.tools = tools;
        (port, scene)
    }
}
