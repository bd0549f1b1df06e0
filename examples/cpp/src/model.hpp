// The graphs of a package, and what is done between them: encode, decode, sample.
#pragma once
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>

#include "package.hpp"
#include "transform.hpp"

using Tensors = std::vector<at::Tensor>;

// A compiled graph that refuses arguments of other types and shapes: it would read beyond them.
class Graph {
public:
    Graph(const Package& package, const std::string& name) : name_(name), about_(package["graphs"].at(name)) {
        std::string path = (package.folder / (name + ".pt2")).string();
        try {
            loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path);
        } catch (const std::exception& error) {
            std::string why = error.what();
            refuse(path, " cannot be loaded by this libtorch: ", why.substr(0, why.find('\n')));
        }
    }

    const Json& inputs() const { return about_.at("inputs"); }
    const Json& order() const { return about_.at("order"); }

    // in the order of the manifest's "order"
    Tensors operator()(const Tensors& given) const {
        int64_t batch = -1;
        size_t i = 0;
        for (const auto& name : about_.at("order")) {
            const Json& kind = inputs().at(name.get<std::string>());
            const at::Tensor& t = given.at(i++);
            std::vector<int64_t> expected;
            for (const auto& n : kind.at("shape")) {
                if (n.is_number()) expected.push_back(n.get<int64_t>());
                else expected.push_back(batch = batch < 0 ? t.size(0) : batch);
            }
            if (t.sizes() != at::IntArrayRef(expected) || t.scalar_type() != type(kind.at("dtype")) || batch == 0)
                refuse("the exported ", name_, " got ", name.get<std::string>(), " of another type or shape than ", kind.dump());
        }
        Tensors contiguous;
        for (const auto& t : given) contiguous.push_back(t.contiguous());
        return loader_->run(contiguous);
    }

    static at::ScalarType type(const std::string& name) {
        if (name == "float32") return at::kFloat;
        if (name == "float64") return at::kDouble;
        return name == "int64" ? at::kLong : at::kBool;
    }

private:
    std::string name_;
    Json about_;
    std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

// Refuse a library for a processor with instructions that this one lacks.
inline void check_processor(const std::string& compiled_for) {
    static const std::vector<std::string> levels = {"NO AVX", "DEFAULT", "AVX2", "AVX512", "AVX512_BF16", "AMX"};
    std::string own = at::get_cpu_capability();
    auto at = [&](const std::string& name) { return std::find(levels.begin(), levels.end(), name); };
    bool known = at(compiled_for) != levels.end() && at(own) != levels.end();
    if (compiled_for != own && !(known && at(compiled_for) < at(own)))
        refuse("the exported model is compiled for processors with ", compiled_for, ", and this one has ", own,
               "; expected the same or newer: export the run again on this kind of machine");
}

class Autoencoder {
public:
    explicit Autoencoder(const Package& package) : encoder_(package, "encoder"), decoder_(package, "decoder"), masks_(encoder_.inputs().contains("mask")) {}

    // (mean, log-variance or codes) of x (B, 1, H, W) and mask (B, 1, H, W)
    Tensors encode(const at::Tensor& x, const at::Tensor& mask) const { return encoder_(masks_ ? Tensors{x, mask} : Tensors{x}); }
    at::Tensor decode(const at::Tensor& z) const { return decoder_({z})[0]; }

private:
    Graph encoder_, decoder_;
    bool masks_;
};

// ---- samplers: xrddiff.learn.diffusion.samplers, in float64

using Denoise = std::function<at::Tensor(const at::Tensor& x, double sigma)>;

namespace samplers {

inline std::vector<double> omega(double h, int n) {
    std::vector<double> w = {-std::expm1(-h)};
    double factorial = 1;
    for (int k = 1; k < n; ++k) factorial *= k, w.push_back(1 / factorial - w.back() / h);
    return w;
}

inline at::Tensor bridge(at::Tensor x, const at::Tensor& d, const std::vector<std::pair<double, at::Tensor>>& points, double h, bool bh2) {
    std::vector<double> w = omega(h, int(points.size()) + 1), c;
    x = std::exp(-h) * x + w[0] * d;
    if (points.empty()) return x;
    if (points.size() == 1) {
        c = {0.5 * (bh2 ? w[0] : h)};
    } else {  // the powers of the nodes as a matrix
        int64_t n = int64_t(points.size());
        at::Tensor powers = at::empty({n, n}, at::kDouble), right = at::empty({n}, at::kDouble);
        double factorial = 1;
        for (int64_t k = 0; k < n; ++k) {
            factorial *= double(k + 1);
            for (int64_t j = 0; j < n; ++j) powers[k][j] = std::pow(points[size_t(j)].first, double(k));
            right[k] = factorial * w[size_t(k) + 1];
        }
        at::Tensor solved = at::linalg_solve(powers, right);
        for (int64_t k = 0; k < n; ++k) c.push_back(solved[k].item<double>());
    }
    for (size_t j = 0; j < points.size(); ++j) x = x + (c[j] / points[j].first) * (points[j].second - d);
    return x;
}

inline at::Tensor unipc(const Denoise& denoise, at::Tensor x, const std::vector<double>& sigmas, const Json& options) {
    int order = options.value("order", 2), steps = int(sigmas.size()) - 1;
    bool corrector = options.value("corrector", true), bh2 = options.value("basis", "bh2") == "bh2";
    std::vector<std::pair<double, at::Tensor>> past, points;
    at::Tensor start = x;
    double h = 0;
    for (int i = 0; i < steps; ++i) {
        double sigma = sigmas[size_t(i)], next = sigmas[size_t(i) + 1];
        at::Tensor d = denoise(x, sigma);
        if (next == 0) return d;
        if (!past.empty() && (corrector || (i == 1 && order == 3))) {
            auto with_end = points;
            with_end.emplace_back(1.0, d);
            x = bridge(start, past.back().second, with_end, h, bh2);
        }
        int p = std::min({order, i + 1, sigmas.back() == 0 ? steps - i : order});
        start = x, h = std::log(sigma / next);
        if (past.size() > 2) past.erase(past.begin());
        past.emplace_back(-std::log(sigma), d);
        points.clear();
        for (int k = 1; k < p; ++k) {
            const auto& [level, value] = past[past.size() - 1 - size_t(k)];
            points.emplace_back((level + std::log(sigma)) / h, value);
        }
        x = bridge(x, d, points, h, bh2);
    }
    return x;
}

inline at::Tensor euler(const Denoise& denoise, at::Tensor x, const std::vector<double>& sigmas) {
    for (size_t i = 0; i + 1 < sigmas.size(); ++i) {
        at::Tensor d = denoise(x, sigmas[i]);
        x = d + (sigmas[i + 1] / sigmas[i]) * (x - d);
    }
    return x;
}

inline at::Tensor heun(const Denoise& denoise, at::Tensor x, const std::vector<double>& sigmas) {
    for (size_t i = 0; i + 1 < sigmas.size(); ++i) {
        double sigma = sigmas[i], next = sigmas[i + 1];
        at::Tensor d = denoise(x, sigma);
        if (next == 0) return d;
        at::Tensor slope = (x - d) / sigma, ahead = x + (next - sigma) * slope;
        x = x + (next - sigma) * (slope + (ahead - denoise(ahead, next)) / next) / 2;
    }
    return x;
}

inline at::Tensor dpmpp_2m(const Denoise& denoise, at::Tensor x, const std::vector<double>& sigmas) {
    at::Tensor past;
    double before = 0;
    for (size_t i = 0; i + 1 < sigmas.size(); ++i) {
        at::Tensor d = denoise(x, sigmas[i]);
        if (sigmas[i + 1] == 0) return d;
        double h = std::log(sigmas[i] / sigmas[i + 1]);
        at::Tensor guess = i == 0 ? d : d + (0.5 * h / before) * (d - past);
        x = (sigmas[i + 1] / sigmas[i]) * x - std::expm1(-h) * guess;
        past = d, before = h;
    }
    return x;
}

inline at::Tensor run(const Json& sampler, const Denoise& denoise, const at::Tensor& x, const std::vector<double>& sigmas) {
    std::string name = sampler.at("name");
    const Json& options = sampler.at("options");
    if (name == "unipc") return unipc(denoise, x, sigmas, options);
    if (name == "euler" || (name == "ddim" && options.value("eta", 0.0) == 0)) return euler(denoise, x, sigmas);
    if (name == "heun" && options.value("S_churn", 0.0) == 0) return heun(denoise, x, sigmas);
    if (name == "dpmpp_2m") return dpmpp_2m(denoise, x, sigmas);
    refuse("the package asks for the sampler ", name, " with ", options.dump(),
           ", which this program does not know; expected unipc, euler, heun, dpmpp_2m, or ddim without noise");
}

}  // namespace samplers

// ---- the conditions that samples are given: xrddiff.judge.inference.conditions

struct Asked {
    std::map<std::string, std::string> conditions;  // name -> number, class number or class name
    std::map<std::string, at::Tensor> maps;         // name -> (N, C, h, w), number i of sample `first` + i
    std::vector<int64_t> rows;                      // their training frames, if the maps came with them
    int64_t first = 0;

    // the place of a sample among `n`; a chunk can go beyond what was asked for
    size_t at(int64_t sample, size_t n) const { return size_t(std::clamp<int64_t>(sample - first, 0, int64_t(n) - 1)); }
};

class Sampling {
public:
    explicit Sampling(const Package& package) : denoiser_(package, "denoiser"), about_(package["generator"]), how_(package["sampling"]) {
        for (const auto& level : how_.at("sigmas")) sigmas_.push_back(level.get<double>());
        shape_ = about_.at("shape").get<std::vector<int64_t>>();
        if (about_.at("drawn").get<std::vector<int64_t>>() != shape_)
            refuse("the model draws its frames in tiles, which this program cannot; expected one that draws whole frames");
        if (how_.at("guidance") != "classifier_free") refuse("the package is guided by another model; expected inference.guidance=classifier_free");
        places_ = about_.contains("places") ? about_.at("places") : Json{{"distance", about_.at("distances")}};  // as `kept_places`
        scale_ = how_.at("guidance_scale");
        if (const Json& interval = how_.at("guidance_interval"); !interval.is_null()) low_ = interval[0], high_ = interval[1];
    }

    const Json& about() const { return about_; }
    const Json& how() const { return how_; }
    const std::vector<int64_t>& shape() const { return shape_; }
    int64_t panels() const { return about_.at("panels"); }

    // the training frame of each sample, from which it has all that it is told: a row of every table
    std::vector<int64_t> rows(const std::vector<int64_t>& samples, int64_t seed, const Asked& asked) const {
        const Json& tables = about_.at("conditions");
        size_t count = 0;
        for (const auto& [name, table] : tables.items()) count = std::max(count, table.size());
        if (tables.empty()) {
            count = about_.at("lattices").size();
            for (const auto& [name, table] : places_.items()) count = std::max(count, table.size());
        }
        std::vector<int64_t> out;
        if (!asked.rows.empty()) {
            for (int64_t i : samples) {
                int64_t row = asked.rows[asked.at(i, asked.rows.size())];
                if (row < 0 || row >= int64_t(std::max<size_t>(count, 1))) refuse("the maps are of training frame ", std::to_string(row), "; the model has ", std::to_string(count));
                out.push_back(row);
            }
            return out;
        }
        std::vector<int64_t> all(count), among;
        std::iota(all.begin(), all.end(), 0);
        std::copy_if(all.begin(), all.end(), std::back_inserter(among), [&](int64_t row) {
            for (const auto& [name, text] : asked.conditions)
                if (tables.contains(name) && is_class(name) && known(name, row) != value(name, text)) return false;
            return true;
        });
        if (among.empty()) among = all;
        for (int64_t i : samples) out.push_back(among.empty() ? 0 : among[size_t(Philox({seed, std::string("condition"), i}).integer(int64_t(among.size())))]);
        return out;
    }

    // a condition of these samples, as float64; a class is a whole number
    std::vector<double> column(const std::string& name, const std::vector<int64_t>& rows, const Asked& asked) const {
        if (auto found = asked.conditions.find(name); found != asked.conditions.end()) return std::vector<double>(rows.size(), value(name, found->second));
        std::vector<double> out;
        for (int64_t row : rows) out.push_back(known(name, row));
        return out;
    }

    const Json& places() const { return places_; }  // of the detector in the training frames

    bool is_class(const std::string& name) const { return about_.at("fields").at(name).is_number(); }

    // what the model draws for these samples: (B panels, C, h, w) float32
    at::Tensor draw(const std::vector<int64_t>& samples, int64_t seed, const Asked& asked, const at::Tensor& mask) const {
        int64_t images = int64_t(samples.size()) * panels();
        std::vector<int64_t> full = {images};
        full.insert(full.end(), shape_.begin(), shape_.end());
        at::Tensor noise = at::empty(full, at::kFloat);
        for (int64_t j = 0; j < images; ++j) {
            int64_t number = panels() * samples[size_t(j / panels())] + j % panels();
            at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed_from({seed, std::string("sample"), number}));
            noise[j].normal_(0, 1, generator);
        }
        Tensors told = conditions(samples, seed, asked, mask, images);
        Denoise denoise = [&](const at::Tensor& x, double sigma) { return clamped(guided(x, sigma, told)); };
        return samplers::run(how_.at("sampler"), denoise, sigmas_[0] * noise.to(at::kDouble), sigmas_).to(at::kFloat);
    }

private:
    double known(const std::string& name, int64_t row) const {
        const Json& table = about_.at("conditions").at(name);
        const Json& v = table.at(size_t(row));
        return v.is_null() ? (is_class(name) ? -1 : std::numeric_limits<double>::quiet_NaN()) : v.get<double>();
    }

    double value(const std::string& name, const std::string& text) const {
        const Json& names = about_.at("names").at(name);
        if (names.is_array())
            for (size_t i = 0; i < names.size(); ++i)
                if (names[i] == text) return double(i);
        size_t end = 0;
        double number = 0;
        try {
            number = std::stod(text, &end);
        } catch (const std::exception&) {
        }
        bool fits = end == text.size() && !text.empty();
        if (is_class(name)) fits = fits && number == std::floor(number) && number >= -1 && number < about_.at("fields").at(name).get<double>();
        if (!fits) refuse("the condition ", name, " is ", text, "; expected ", names.is_array() ? "one of " + names.dump() : "a number");
        return number;
    }

    Tensors conditions(const std::vector<int64_t>& samples, int64_t seed, const Asked& asked, const at::Tensor& mask, int64_t images) const {
        for (const auto& [name, text] : asked.conditions)
            if (!about_.at("conditions").contains(name)) refuse("the model is not conditioned on ", name, "; it is on ", about_.at("fields").dump());
        Tensors told;
        std::vector<int64_t> own = rows(samples, seed, asked);
        for (const auto& word : order()) {
            std::string name = word.get<std::string>();
            if (name == "x" || name == "sigma") continue;
            if (name == "mask") {
                told.push_back(mask.repeat({int64_t(samples.size()), 1, 1, 1}));
            } else if (about_.at("map_channels").contains(name)) {
                auto found = asked.maps.find(name);
                if (found == asked.maps.end())
                    refuse("the model is told the maps ", about_.at("map_channels").dump(), "; expected --maps FILE.h5 with one of each for every sample");
                Tensors maps;
                for (int64_t i : samples) maps.push_back(found->second[int64_t(asked.at(i, size_t(found->second.size(0))))].unsqueeze(0).expand({panels(), -1, -1, -1}));
                told.push_back(at::cat(maps));
            } else {
                std::vector<double> one = column(name, own, asked);
                at::Tensor t = at::tensor(at::ArrayRef<double>(one), at::kDouble).repeat_interleave(panels());
                told.push_back(t.to(is_class(name) ? at::kLong : at::kFloat));
            }
        }
        (void)images;
        return told;
    }

    const Json& order() const { return denoiser_.order(); }

    at::Tensor ask(const at::Tensor& x, double sigma, const Tensors& told) const {
        Tensors given = {x, at::scalar_tensor(sigma, at::kDouble)};
        given.insert(given.end(), told.begin(), told.end());
        return denoiser_(given)[0];
    }

    // classifier-free guidance: xrddiff.learn.diffusion.guidance
    at::Tensor guided(const at::Tensor& x, double sigma, const Tensors& told) const {
        if (scale_ == 1 || told.empty() || !(sigma > low_ && sigma <= high_)) return ask(x, sigma, told);
        Tensors both;
        size_t j = 0;
        for (const auto& word : order()) {
            std::string name = word.get<std::string>();
            if (name == "x" || name == "sigma") continue;
            const at::Tensor& t = told[j++];
            bool kept = name == "mask" || name.rfind("augment_", 0) == 0;
            at::Tensor unknown = kept ? t : t.is_floating_point() ? at::full_like(t, std::numeric_limits<double>::quiet_NaN()) : at::full_like(t, -1);
            both.push_back(at::cat({t, unknown}));
        }
        Tensors parts = ask(at::cat({x, x}), sigma, both).chunk(2);
        return parts[1] + scale_ * (parts[0] - parts[1]);
    }

    at::Tensor clamped(const at::Tensor& x) const {
        const Json& clamp = how_.at("sampler").at("clamp");
        return clamp.is_null() ? x : x.clamp(clamp[0].get<double>(), clamp[1].get<double>());
    }

    Graph denoiser_;
    Json about_, how_, places_;
    std::vector<double> sigmas_;
    std::vector<int64_t> shape_;
    double scale_ = 1, low_ = 0, high_ = std::numeric_limits<double>::infinity();
};
