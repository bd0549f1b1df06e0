// From intensities to network values and back, in float32: xrddiff.data.transforms.values.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "refused.hpp"

// lowest and highest intensity
struct Range {
    float low, high;

    Range(float lowest, float highest) : low(lowest), high(highest) {}
    Range(const std::array<double, 2>& ends) : low(float(ends[0])), high(float(ends[1])) {}

    void add(float x) { low = std::min(low, x), high = std::max(high, x); }
    void add(const Range& other) { low = std::min(low, other.low), high = std::max(high, other.high); }
    float held(float x) const { return std::min(std::max(x, low), high); }
    // with a fifth of headroom at both ends, as xrddiff.data.transforms.values.HEADROOM; an empty range adds nothing
    Range widened() const {
        if (!(low <= high)) return *this;
        float room = 0.2f * (high - low);
        return {low - room, high + room};
    }
};

struct Step {
    std::string name;
    float scale, inverse_scale, pedestal, mean, std, inverse_std, shift;

    explicit Step(const nlohmann::json& state) : name(state.at("transform")) {
        static const char* known[] = {"asinh", "log1p", "sqrt", "linear", "anscombe"};
        if (std::find(std::begin(known), std::end(known), name) == std::end(known))
            refuse("the model has the transform ", name, ", which this program does not know; expected asinh, log1p, sqrt, linear or anscombe");
        const auto &fitted = state.at("fitted"), &given = state.at("parameters");
        double s = fitted.at("fitted_scale"), d = fitted.at("std");
        scale = float(s), inverse_scale = float(1 / s), pedestal = float(given.at("pedestal").get<double>());
        mean = float(fitted.at("mean").get<double>()), std = float(d), inverse_std = float(1 / d);
        double noise = given.value("read_noise", 0.0);
        shift = float(3.0 / 8 + (noise / s) * (noise / s));
    }

    float forward(float x) const { return (curve((x - pedestal) * inverse_scale) - mean) * inverse_std; }
    float inverse(float y) const { return uncurve(y * std + mean) * scale + pedestal; }

private:
    float curve(float u) const {
        if (name == "asinh") return std::asinh(u);
        if (name == "log1p") return std::copysign(std::log1p(std::fabs(u)), u);
        if (name == "sqrt") return std::copysign(std::sqrt(std::fabs(u)), u);
        if (name == "anscombe") return std::copysign(2 * std::sqrt(std::fabs(u + shift)), u + shift);
        return u;
    }
    float uncurve(float v) const {
        if (name == "asinh") return std::sinh(std::clamp(v, -70.0f, 70.0f));
        if (name == "log1p") return std::copysign(std::expm1(std::min(std::fabs(v), 70.0f)), v);
        if (name == "sqrt") return v * std::fabs(v);
        if (name == "anscombe") return v * std::fabs(v) * 0.25f - shift;
        return v;
    }
};

class Transform {
public:
    explicit Transform(const nlohmann::json& state) {
        if (state.at("transform") != "pipeline") {
            steps_.emplace_back(state);
            return;
        }
        for (const auto& one : state.at("parameters").at("transforms")) steps_.emplace_back(one);
    }
    float forward(float x) const {
        for (const Step& s : steps_) x = s.forward(x);
        return x;
    }
    float inverse(float y) const {
        for (auto s = steps_.rbegin(); s != steps_.rend(); ++s) y = s->inverse(y);
        return y;
    }

private:
    std::vector<Step> steps_;
};
