// Frames in HDF5: what xrddiff.data.formats.store writes and reads.
#pragma once
#include <hdf5.h>

#include <cstdint>
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "refused.hpp"

namespace h5 {

// an HDF5 handle that closes itself
class Id {
public:
    Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
    Id(Id&& other) noexcept : id_(other.id_), close_(other.close_) { other.id_ = -1; }
    Id(const Id&) = delete;
    ~Id() {
        if (id_ >= 0) close_(id_);
    }
    operator hid_t() const { return id_; }

private:
    hid_t id_;
    herr_t (*close_)(hid_t);
};

inline bool has(hid_t file, const std::string& path) {
    for (size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {  // a link of a missing group is an error in HDF5
        if (H5Lexists(file, path.substr(0, at).c_str(), H5P_DEFAULT) <= 0) return false;
        if (at == std::string::npos) return H5Oexists_by_name(file, path.c_str(), H5P_DEFAULT) > 0;
    }
}

inline std::string text_attribute(hid_t object, const char* name) {
    if (H5Aexists(object, name) <= 0) return "";
    Id a(H5Aopen(object, name, H5P_DEFAULT), H5Aclose), type(H5Aget_type(a), H5Tclose);
    if (H5Tget_class(type) != H5T_STRING) return "";
    if (H5Tis_variable_str(type) > 0) {
        char* text = nullptr;
        if (H5Aread(a, type, &text) < 0 || text == nullptr) return "";
        std::string out = text;
        H5free_memory(text);
        return out;
    }
    std::string out(H5Tget_size(type), '\0');
    if (H5Aread(a, type, out.data()) < 0) return "";
    return out.c_str();
}

inline void write_attribute(hid_t object, const char* name, const std::string& text) {
    if (H5Aexists(object, name) > 0) H5Adelete(object, name);
    Id type(H5Tcopy(H5T_C_S1), H5Tclose), space(H5Screate(H5S_SCALAR), H5Sclose);
    H5Tset_size(type, H5T_VARIABLE), H5Tset_cset(type, H5T_CSET_UTF8);
    Id a(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    const char* value = text.c_str();
    H5Awrite(a, type, &value);
}

inline void write_attribute(hid_t object, const char* name, int64_t number) {
    if (H5Aexists(object, name) > 0) H5Adelete(object, name);
    Id space(H5Screate(H5S_SCALAR), H5Sclose);
    Id a(H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    H5Awrite(a, H5T_NATIVE_INT64, &number);
}

// all attributes of one object that another has not
inline void copy_attributes(hid_t from, hid_t to, const std::set<std::string>& without = {}) {
    struct Job {
        hid_t to;
        const std::set<std::string>* without;
    } job{to, &without};
    auto copy = [](hid_t from, const char* name, const H5A_info_t*, void* data) -> herr_t {
        auto* job = static_cast<Job*>(data);
        if (job->without->count(name) || H5Aexists(job->to, name) > 0) return 0;
        Id a(H5Aopen(from, name, H5P_DEFAULT), H5Aclose), type(H5Aget_type(a), H5Tclose), space(H5Aget_space(a), H5Sclose);
        std::vector<char> value(std::max<size_t>(1, size_t(H5Sget_simple_extent_npoints(space)) * H5Tget_size(type)));
        if (H5Aread(a, type, value.data()) < 0) return -1;
        Id b(H5Acreate2(job->to, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
        H5Awrite(b, type, value.data());
        if (H5Tis_variable_str(type) > 0) H5Dvlen_reclaim(type, space, H5P_DEFAULT, value.data());
        return 0;
    };
    H5Aiterate2(from, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, copy, &job);
}

inline std::vector<std::string> names(hid_t group) {
    std::vector<std::string> out;
    auto add = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
        static_cast<std::vector<std::string>*>(data)->push_back(name);
        return 0;
    };
    H5Literate(group, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, add, &out);
    return out;
}

inline std::vector<hsize_t> shape(hid_t dataset) {
    Id space(H5Dget_space(dataset), H5Sclose);
    std::vector<hsize_t> out(size_t(std::max(0, H5Sget_simple_extent_ndims(space))));
    H5Sget_simple_extent_dims(space, out.data(), nullptr);
    return out;
}

}  // namespace h5

// Frames of a file, read some at a time.
class FramesFile {
public:
    explicit FramesFile(const std::string& path) : path_(path), file_(open(path), H5Fclose), data_(find(), H5Dclose), shape_(h5::shape(data_)) {
        if (shape_.size() == 2) shape_.insert(shape_.begin(), 1), single_ = true;
        if (shape_.size() != 3 || shape_[0] == 0)
            refuse(path_, ": its frames have ", std::to_string(shape_.size()), " axes; expected (frame, y, x) with one frame or more");
        masked_ = h5::has(file_, "/mask");
    }

    hsize_t count() const { return shape_[0]; }
    hsize_t height() const { return shape_[1]; }
    hsize_t width() const { return shape_[2]; }
    std::string units() const { return h5::text_attribute(data_, "units"); }
    const std::string& path() const { return path_; }
    hid_t id() const { return file_; }
    hid_t data() const { return data_; }
    bool own() const { return h5::text_attribute(file_, "xrddiff_format") != ""; }

    // rows first … first + n − 1 as float32, whatever their type
    std::vector<float> read(hsize_t first, hsize_t n) const {
        std::vector<float> out(size_t(n * shape_[1] * shape_[2]));
        rows(data_, first, n, H5T_NATIVE_FLOAT, out.data(), "its frames");
        return out;
    }

    // True = a measurement; all are where the file has no mask
    std::vector<unsigned char> mask(hsize_t first, hsize_t n) const {
        size_t frame = size_t(shape_[1] * shape_[2]);
        std::vector<unsigned char> out(size_t(n) * frame, 1);
        if (!masked_) return out;
        h5::Id mask(H5Dopen2(file_, "/mask", H5P_DEFAULT), H5Dclose), type(H5Dget_type(mask), H5Tclose);
        auto dims = h5::shape(mask);
        if (dims.size() < 2 || dims[dims.size() - 2] != shape_[1] || dims.back() != shape_[2] || H5Tget_size(type) != 1 ||
            (dims.size() == 3 && dims[0] != shape_[0]) || dims.size() > 3)
            refuse(path_, ": its mask is not one of truth values for each pixel");
        if (dims.size() == 3) {
            rows(mask, first, n, type, out.data(), "its mask");
            return out;
        }
        if (H5Dread(mask, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()) < 0) refuse(path_, ": its mask cannot be read");
        for (hsize_t i = 1; i < n; ++i) std::copy_n(out.begin(), frame, out.begin() + long(size_t(i) * frame));
        return out;
    }

private:
    static hid_t open(const std::string& path) {
        if (!std::filesystem::is_regular_file(path)) refuse("there is no file ", path);
        hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
        if (file < 0) refuse(path, " is no HDF5 file, or not a whole one");
        return file;
    }

    hid_t find() const {
        for (const char* name : {"/intensity", "/entry_1/data_1/data", "/entry/data/data"})
            if (h5::has(file_, name)) return H5Dopen2(file_, name, H5P_DEFAULT);
        refuse(path_, " holds no frames; expected /intensity, /entry_1/data_1/data or /entry/data/data");
    }

    void rows(hid_t data, hsize_t first, hsize_t n, hid_t type, void* out, const char* what) const {
        h5::Id space(H5Dget_space(data), H5Sclose);
        std::vector<hsize_t> start = {first, 0, 0}, size = {n, shape_[1], shape_[2]};
        if (single_ && data == hid_t(data_)) start.erase(start.begin()), size.erase(size.begin());
        H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr);
        h5::Id memory(H5Screate_simple(int(size.size()), size.data(), nullptr), H5Sclose);
        if (H5Dread(data, type, memory, space, H5P_DEFAULT, out) < 0)
            refuse(path_, ": ", what, " cannot be read; if they are compressed, HDF5_PLUGIN_PATH must name the folder of the filter "
                   "(python -c 'import hdf5plugin; print(hdf5plugin.PLUGIN_PATH)')");
    }

    std::string path_;
    h5::Id file_, data_;
    std::vector<hsize_t> shape_;
    bool single_ = false, masked_ = false;
};

// A file of frames that is being written: hidden, and renamed when it is complete.
class FramesWriter {
public:
    // geometry, mask and units are those of `like`; `kept`: its datasets that are not frame by frame, or all
    FramesWriter(const std::string& path, hid_t like, hid_t like_data, bool whole)
        : path_(path), part_(hidden(path)), file_(H5Fcreate(part_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose) {
        if (file_ < 0) refuse(path, " cannot be written");
        h5::copy_attributes(like, file_, {"xrddiff_digest", "xrddiff_version", "xrddiff_format"});
        for (const std::string& name : h5::names(like)) {
            H5O_info_t about;
            H5Oget_info_by_name(like, name.c_str(), &about, H5P_DEFAULT);
            if (about.type != H5O_TYPE_DATASET || name == "intensity") continue;
            h5::Id data(H5Dopen2(like, name.c_str(), H5P_DEFAULT), H5Dclose);
            if (!whole && h5::text_attribute(data, "dims").rfind("frame", 0) == 0) continue;
            H5Ocopy(like, name.c_str(), file_, name.c_str(), H5P_DEFAULT, H5P_DEFAULT);
        }
        like_data_ = like_data;
        // version 1 of the format has no digest of its small parts: each chunk of pixels has a checksum
        h5::write_attribute(file_, "xrddiff_format", std::string("xrddiff-frames"));
        h5::write_attribute(file_, "xrddiff_version", int64_t(1));
    }

    ~FramesWriter() {
        std::error_code ignored;
        if (!done_) std::filesystem::remove(part_, ignored);
    }

    void about(const char* name, const std::string& text) { h5::write_attribute(file_, name, text); }
    void about(const char* name, int64_t number) { h5::write_attribute(file_, name, number); }

    // a stack of float32, the frames first, with a checksum for each of them
    void stack(const std::string& name, std::vector<hsize_t> shape, const std::string& dims) {
        shapes_[name] = shape;
        h5::Id space(H5Screate_simple(int(shape.size()), shape.data(), nullptr), H5Sclose);
        h5::Id how(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
        shape[0] = 1;
        H5Pset_chunk(how, int(shape.size()), shape.data());
        H5Pset_shuffle(how), H5Pset_deflate(how, 1), H5Pset_fletcher32(how);
        h5::Id data(H5Dcreate2(file_, name.c_str(), H5T_IEEE_F32LE, space, H5P_DEFAULT, how, H5P_DEFAULT), H5Dclose);
        if (data < 0) refuse(path_, " cannot be written");
        h5::write_attribute(data, "dims", dims), h5::write_attribute(data, "coordinate", int64_t(0));
        if (name == "intensity") h5::copy_attributes(like_data_, data);
    }

    void write(const std::string& name, hsize_t first, hsize_t n, const float* values) {
        h5::Id data(H5Dopen2(file_, name.c_str(), H5P_DEFAULT), H5Dclose), space(H5Dget_space(data), H5Sclose);
        std::vector<hsize_t> size = shapes_[name], start(size.size(), 0);
        start[0] = first, size[0] = n;
        H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr);
        h5::Id memory(H5Screate_simple(int(size.size()), size.data(), nullptr), H5Sclose);
        if (H5Dwrite(data, H5T_NATIVE_FLOAT, memory, space, H5P_DEFAULT, values) < 0) refuse(path_, " cannot be written: is the disk full?");
    }

    // a number for each frame
    template <class T>
    void column(const std::string& name, const std::vector<T>& values, const std::map<std::string, std::string>& attrs = {}) {
        hsize_t n = values.size();
        h5::Id space(H5Screate_simple(1, &n, nullptr), H5Sclose);
        hid_t type = std::is_same_v<T, int64_t> ? H5T_NATIVE_INT64 : std::is_same_v<T, float> ? H5T_NATIVE_FLOAT : H5T_NATIVE_DOUBLE;
        if (H5Lexists(file_, name.c_str(), H5P_DEFAULT) > 0) H5Ldelete(file_, name.c_str(), H5P_DEFAULT);
        h5::Id data(H5Dcreate2(file_, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
        H5Dwrite(data, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
        for (const auto& [key, text] : attrs) h5::write_attribute(data, key.c_str(), text);
        h5::write_attribute(data, "dims", std::string("frame")), h5::write_attribute(data, "coordinate", int64_t(0));
    }

    void finish() {
        h5::Id entry(H5Gcreate2(file_, "/entry_1", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
        h5::Id group(H5Gcreate2(file_, "/entry_1/data_1", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
        H5Lcreate_soft("/intensity", group, "data", H5P_DEFAULT, H5P_DEFAULT);
        if (H5Fflush(file_, H5F_SCOPE_GLOBAL) < 0) refuse(path_, " cannot be written: is the disk full?");
        std::filesystem::rename(part_, path_);
        done_ = true;
    }

private:
    static std::string hidden(const std::string& path) {
        std::filesystem::path p(path);
        return (p.parent_path() / ("." + p.filename().string() + ".part")).string();
    }

    std::string path_, part_;
    h5::Id file_;
    hid_t like_data_ = -1;
    std::map<std::string, std::vector<hsize_t>> shapes_;
    bool done_ = false;
};
