//! The `Kitfile` at the root of a mount: the config written as YAML, byte for byte as kit 1.7 writes it when it unpacks.
//!
//! Kit drops the digests, and every empty field but two (the manifest version and the path of a document). Numbers of free-form
//! parameters have passed through a 64-bit float. The fields that later versions of kit know stand where those versions put them.

mod yaml;

use bytes::Bytes;

use crate::json::Json;
use crate::kit::config::{Code, Config, Dataset, Doc, McpServer, Model, Package, Part, Prompt};
use yaml::Yaml;

/// Writes the Kitfile of `config`.
pub(crate) fn render(config: &Config) -> Bytes {
    Bytes::from(yaml::document(&kitfile(config)))
}

fn kitfile(config: &Config) -> Yaml<'_> {
    let mut fields = Fields(vec![("manifestVersion", Yaml::Text(&config.manifest_version))]);
    if config.package != Package::default() {
        fields.0.push(("package", package(&config.package)));
    }
    if let Some(model) = &config.model {
        fields.0.push(("model", self::model(model)));
    }
    fields.list("code", &config.code, |Code { path, description, license, .. }| {
        Fields::default().text("path", path).text("description", description).text("license", license)
    });
    fields.list("datasets", &config.datasets, |dataset| {
        let Dataset { name, path, remote_path, remote_hash, description, license, parameters, .. } = dataset;
        Fields::default()
            .text("name", name)
            .text("path", path)
            .text("remotePath", remote_path)
            .text("remoteHash", remote_hash)
            .text("description", description)
            .text("license", license)
            .free("parameters", parameters.as_ref())
    });
    fields.list("docs", &config.docs, |Doc { path, description, .. }| {
        Fields(vec![("path", Yaml::Text(path))]).text("description", description)
    });
    fields.list("prompts", &config.prompts, |Prompt { name, path, description, .. }| {
        Fields::default().text("name", name).text("path", path).text("description", description)
    });
    fields.list("mcpServers", &config.mcp_servers, |McpServer { name, path, description, .. }| {
        Fields::default().text("name", name).text("path", path).text("description", description)
    });
    fields.map()
}

fn package(package: &Package) -> Yaml<'_> {
    let Package { name, version, description, license, authors } = package;
    let mut fields =
        Fields::default().text("name", name).text("version", version).text("description", description).text("license", license);
    if !authors.is_empty() {
        fields.0.push(("authors", Yaml::Flow(authors.iter().map(|author| Yaml::Text(author)).collect())));
    }
    fields.map()
}

fn model(model: &Model) -> Yaml<'_> {
    let mut fields = Fields::default()
        .text("name", &model.name)
        .text("path", &model.path)
        .text("license", &model.license)
        .text("framework", &model.framework)
        .text("format", &model.format)
        .text("version", &model.version)
        .text("description", &model.description);
    fields.list("parts", &model.parts, |Part { name, path, license, kind, .. }| {
        Fields::default().text("name", name).text("path", path).text("license", license).text("type", kind)
    });
    fields.free("parameters", model.parameters.as_ref()).map()
}

/// What a free-form value becomes. Its maps are sorted, since kit has lost their order.
fn free(json: &Json) -> Yaml<'_> {
    match json {
        Json::Null => Yaml::Null,
        Json::Bool(value) => Yaml::Bool(*value),
        // Kit reads every number as a float; one that a float cannot hold does not get here.
        Json::Number(number) => Yaml::Number(number.as_f64().unwrap_or_default()),
        Json::String(text) => Yaml::Text(text),
        Json::Array(elements) => Yaml::List(elements.iter().map(free).collect()),
        Json::Object(entries) => Yaml::Map(yaml::sorted(entries.iter().map(|(key, value)| (key.as_str(), free(value))).collect())),
    }
}

/// The fields of a mapping in order, without those that kit omits.
#[derive(Default)]
struct Fields<'a>(Vec<(&'a str, Yaml<'a>)>);

impl<'a> Fields<'a> {
    fn text(mut self, key: &'a str, value: &'a str) -> Self {
        if !value.is_empty() {
            self.0.push((key, Yaml::Text(value)));
        }
        self
    }

    fn free(mut self, key: &'a str, value: Option<&'a Json>) -> Self {
        self.0.extend(value.map(|value| (key, free(value))));
        self
    }

    fn list<T>(&mut self, key: &'a str, elements: &'a [T], fields: impl Fn(&'a T) -> Self) {
        if !elements.is_empty() {
            self.0.push((key, Yaml::List(elements.iter().map(|element| fields(element).map()).collect())));
        }
    }

    fn map(self) -> Yaml<'a> {
        Yaml::Map(self.0)
    }
}

#[cfg(test)]
mod tests;
