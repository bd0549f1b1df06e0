// What is refused, with one sentence.
#pragma once
#include <stdexcept>
#include <string>

struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::string text;
    ((text += parts), ...);
    throw Refused(text);
}
