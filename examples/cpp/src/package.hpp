// A package of `xrddiff export --format pt2`: its manifest, after every byte was compared with its hash.
#pragma once
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "keys.hpp"

using Json = nlohmann::json;
namespace fs = std::filesystem;

inline const std::string FORMAT = "xrddiff exported model";
inline const int VERSION = 1;
inline const std::string MARK = "xrddiff.json";  // who wrote the folder, and when: no part of the model

struct Package {
    fs::path folder;
    Json about;

    const Json& operator[](const std::string& name) const { return about.at(name); }
    bool has(const std::string& graph) const { return about.at("graphs").contains(graph); }
};

inline void check_sums(const fs::path& folder) {
    fs::path table = folder / "SHA256SUMS";
    if (!fs::is_directory(folder)) refuse(folder.string(), ": there is no such folder; expected an exported model (xrddiff export RUN)");
    std::ifstream file(table);
    if (!file) refuse(folder.string(), ": it has no SHA256SUMS; expected an exported model (xrddiff export RUN)");
    std::map<std::string, std::string> sums;
    for (std::string line; std::getline(file, line);) {
        if (line.size() < 67 || line.substr(64, 2) != "  " || line.find_first_not_of("0123456789abcdef") != 64)
            refuse(folder.string(), " is damaged: SHA256SUMS is no table of hashes");
        sums[line.substr(66)] = line.substr(0, 64);
    }
    std::set<std::string> there;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
        if (!entry.is_directory() && entry.path() != table && entry.path() != folder / MARK) there.insert(fs::relative(entry.path(), folder).generic_string());
    for (const auto& [name, sum] : sums) {
        if (!there.count(name)) refuse(folder.string(), " is damaged: ", name, " is missing");
        if (sha256_of((folder / name).string()) != sum)
            refuse(folder.string(), " is damaged: ", name, " is not the exported file: its SHA-256 differs");
    }
    for (const auto& name : there)
        if (!sums.count(name)) refuse(folder.string(), " is damaged: ", name, " has no hash in SHA256SUMS");
    if (!sums.count("manifest.json")) refuse(folder.string(), " is damaged: manifest.json has no hash in SHA256SUMS");
}

inline Package open_package(const fs::path& folder) {
    check_sums(folder);
    std::ifstream file(folder / "manifest.json");
    Json about = Json::parse(file, nullptr, false);
    if (about.is_discarded() || !about.is_object() || !about.contains("format") || !about.contains("version"))
        refuse(folder.string(), ": manifest.json is not that of an exported model");
    if (about["format"] != FORMAT || about["version"] != VERSION)
        refuse(folder.string(), " has the format ", about["format"].dump(), ", version ", about["version"].dump(), "; expected \"", FORMAT,
               "\", version ", std::to_string(VERSION), ": export the run again");
    if (about["exporter"] != "pt2")
        refuse(folder.string(), " has the format ", about["exporter"].dump(), "; expected pt2 (xrddiff export RUN --format pt2)");
    return {folder, about};
}
