// Hashes, and random numbers as functions of a key, as in xrddiff.core.seeds.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <variant>
#include <vector>

#include "refused.hpp"

// ---- SHA-256 (FIPS 180-4), of the files of a package

class Sha256 {
public:
    void add(const unsigned char* data, size_t n) {
        length_ += n;
        while (n > 0) {
            size_t part = std::min(n, size_t(64) - filled_);
            std::memcpy(block_ + filled_, data, part);
            filled_ += part, data += part, n -= part;
            if (filled_ == 64) work(), filled_ = 0;
        }
    }

    std::string hex() {
        uint64_t bits = 8 * length_;
        unsigned char one = 0x80, zero = 0, end[8];
        add(&one, 1);
        while (filled_ != 56) add(&zero, 1);
        for (int i = 0; i < 8; ++i) end[i] = (unsigned char)(bits >> (56 - 8 * i));
        add(end, 8);
        std::string out;
        for (uint32_t word : h_)
            for (int shift = 28; shift >= 0; shift -= 4) out += "0123456789abcdef"[(word >> shift) & 15];
        return out;
    }

private:
    static uint32_t turned(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

    void work() {
        static const std::array<uint32_t, 64> k = {
            0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
            0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
            0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
            0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
            0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
            0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
            0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
        uint32_t w[64];
        for (int i = 0; i < 16; ++i)
            w[i] = uint32_t(block_[4 * i]) << 24 | uint32_t(block_[4 * i + 1]) << 16 | uint32_t(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
        for (int i = 16; i < 64; ++i) {
            uint32_t a = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ (w[i - 15] >> 3);
            uint32_t b = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ (w[i - 2] >> 10);
            w[i] = w[i - 16] + a + w[i - 7] + b;
        }
        std::array<uint32_t, 8> s = h_;
        for (int i = 0; i < 64; ++i) {
            uint32_t e = turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25);
            uint32_t first = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
            uint32_t a = turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22);
            uint32_t second = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s = {first + second, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
        }
        for (int i = 0; i < 8; ++i) h_[i] += s[i];
    }

    std::array<uint32_t, 8> h_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char block_[64] = {};
    size_t filled_ = 0;
    uint64_t length_ = 0;
};

inline std::string sha256_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse(path, " cannot be read");
    Sha256 sum;
    std::vector<char> part(1 << 20);
    while (file.read(part.data(), std::streamsize(part.size())) || file.gcount() > 0)
        sum.add(reinterpret_cast<unsigned char*>(part.data()), size_t(file.gcount()));
    return sum.hex();
}

// ---- BLAKE2b with a digest of 8 bytes (RFC 7693), of the words of a key

inline uint64_t blake2b_8(const std::string& text) {
    static const uint64_t iv[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                   0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
    static const unsigned char order[10][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
        {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
        {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
        {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
        {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};
    auto turned = [](uint64_t x, int n) { return (x >> n) | (x << (64 - n)); };
    uint64_t h[8];
    std::memcpy(h, iv, sizeof h);
    h[0] ^= 0x01010000 ^ 8;
    size_t blocks = text.empty() ? 1 : (text.size() + 127) / 128;
    for (size_t b = 0; b < blocks; ++b) {
        bool last = b + 1 == blocks;
        size_t end = last ? text.size() : 128 * (b + 1);
        uint64_t m[16] = {}, v[16];
        std::memcpy(m, text.data() + 128 * b, end - 128 * b);  // little-endian, as x86 and Arm are
        std::memcpy(v, h, sizeof h);
        std::memcpy(v + 8, iv, sizeof iv);
        v[12] ^= end;
        if (last) v[14] = ~v[14];
        auto mix = [&](int a, int b, int c, int d, uint64_t x, uint64_t y) {
            v[a] += v[b] + x, v[d] = turned(v[d] ^ v[a], 32), v[c] += v[d], v[b] = turned(v[b] ^ v[c], 24);
            v[a] += v[b] + y, v[d] = turned(v[d] ^ v[a], 16), v[c] += v[d], v[b] = turned(v[b] ^ v[c], 63);
        };
        for (int round = 0; round < 12; ++round) {
            const unsigned char* s = order[round % 10];
            for (int i = 0; i < 4; ++i) mix(i, i + 4, i + 8, i + 12, m[s[2 * i]], m[s[2 * i + 1]]);
            for (int i = 0; i < 4; ++i) mix(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12, m[s[2 * i + 8]], m[s[2 * i + 9]]);
        }
        for (int i = 0; i < 8; ++i) h[i] ^= v[i] ^ v[i + 8];
    }
    return h[0];
}

using Word = std::variant<int64_t, std::string>;

// A 63-bit seed of words: seed_from of xrddiff.core.seeds.
inline uint64_t seed_from(const std::vector<Word>& words) {
    std::string text;
    for (const Word& word : words) {
        if (!text.empty()) text += '\x1f';
        text += std::holds_alternative<int64_t>(word) ? "i" + std::to_string(std::get<int64_t>(word)) : "s" + std::get<std::string>(word);
    }
    return blake2b_8(text) >> 1;
}

// ---- whole numbers of NumPy's Philox generator (Salmon et al. 2011), with Lemire's method

class Philox {
public:
    explicit Philox(const std::vector<Word>& words) : key_(seed_from(words)) {}

    // one of 0 … n − 1
    int64_t integer(int64_t n) {
        if (n < 1 || n > int64_t(UINT32_MAX)) refuse("a random number below ", std::to_string(n), " was asked for; expected 1 or more");
        if (n == 1) return 0;
        uint64_t product = uint64_t(next32()) * uint64_t(n);
        if (uint32_t(product) < uint32_t(n)) {
            uint32_t least = uint32_t(UINT32_MAX - uint32_t(n - 1)) % uint32_t(n);
            while (uint32_t(product) < least) product = uint64_t(next32()) * uint64_t(n);
        }
        return int64_t(product >> 32);
    }

private:
    uint32_t next32() {
        if (kept_) return kept_ = false, uint32_t(word_ >> 32);
        if (at_ == 4) block(), at_ = 0;
        word_ = out_[at_++], kept_ = true;
        return uint32_t(word_);
    }

    void block() {
        uint64_t key[2] = {key_, 0};
        ++counter_;
        std::array<uint64_t, 4> c = {counter_, 0, 0, 0};
        for (int round = 0; round < 10; ++round) {
            if (round > 0) key[0] += 0x9E3779B97F4A7C15, key[1] += 0xBB67AE8584CAA73B;
            unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93 * c[0], b = (unsigned __int128)0xCA5A826395121157 * c[2];
            c = {uint64_t(b >> 64) ^ c[1] ^ key[0], uint64_t(b), uint64_t(a >> 64) ^ c[3] ^ key[1], uint64_t(a)};
        }
        out_ = c;
    }

    uint64_t key_, counter_ = 0, word_ = 0;
    std::array<uint64_t, 4> out_ = {};
    int at_ = 4;
    bool kept_ = false;
};
