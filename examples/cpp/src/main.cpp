// xrddiff-infer: an exported model without Python. See README.md beside this folder.
#include <csignal>
#include <chrono>
#include <iostream>
#include <thread>

#include "frames.hpp"
#include "model.hpp"

static const char* const USAGE = R"(usage: xrddiff-infer COMMAND PACKAGE ...
  check PACKAGE                           compare every byte with its hash, say what it is
  reconstruct PACKAGE IN.h5 OUT.h5        expected values of the frames of a file
  encode PACKAGE IN.h5 OUT.h5             latents of the frames of a file
  sample PACKAGE OUT.h5 -n N              new frames, those that xrddiff sample draws
  bench PACKAGE -n N                      seconds of each graph for batches of 1 and N
reconstruct and encode also take the frames of files as they arrive:
  reconstruct PACKAGE --watch FOLDER --out FOLDER [--idle SECONDS]
options: --batch B  --seed S  --first I  --condition NAME=VALUE  --maps FILE.h5  --threads T
)";

static volatile std::sig_atomic_t stopped = 0;

struct Options {
    std::string command, package, watch, out, maps;
    std::vector<std::string> files;
    std::optional<int64_t> n, seed, first, batch, threads;
    double idle = -1;
    std::map<std::string, std::string> conditions;
};

static int64_t whole(const std::string& name, const std::string& text) {
    size_t end = 0;
    int64_t number = -1;
    try {
        number = std::stoll(text, &end);
    } catch (const std::exception&) {
    }
    if (end != text.size() || number < 0) refuse(name, " is ", text, "; expected a whole number");
    return number;
}

static Options parse(int argc, char** argv) {
    Options o;
    for (int i = 1; i < argc; ++i) {
        std::string word = argv[i];
        if (word == "--help" || word == "-h") std::cout << USAGE, std::exit(0);
        if (word.size() < 2 || word[0] != '-') {
            (o.command.empty() ? o.command : o.package.empty() ? o.package : o.files.emplace_back()) = word;
            continue;
        }
        if (i + 1 == argc) refuse(word, " needs a value (see xrddiff-infer --help)");
        std::string value = argv[++i];
        if (word == "-n") o.n = whole(word, value);
        else if (word == "--seed") o.seed = whole(word, value);
        else if (word == "--first") o.first = whole(word, value);
        else if (word == "--batch") o.batch = whole(word, value);
        else if (word == "--threads") o.threads = whole(word, value);
        else if (word == "--idle") o.idle = double(whole(word, value));
        else if (word == "--watch") o.watch = value;
        else if (word == "--out") o.out = value;
        else if (word == "--maps") o.maps = value;
        else if (word == "--condition") {
            size_t at = value.find('=');
            if (at == std::string::npos) refuse("--condition is ", value, "; expected NAME=VALUE");
            o.conditions[value.substr(0, at)] = value.substr(at + 1);
        } else refuse("there is no option ", word, " (see xrddiff-infer --help)");
    }
    if (o.package.empty()) refuse("a command and a package are needed (see xrddiff-infer --help)");
    if (o.batch && *o.batch < 1) refuse("--batch is 0; expected 1 or more");
    return o;
}

// ---- frames in, frames or latents out

struct Model {
    Package package;
    Transform transform;
    std::vector<hsize_t> frame, padded;
    std::string units;
    std::optional<Range> limits;  // lowest and highest intensity of what is drawn
    std::unique_ptr<Autoencoder> autoencoder;

    explicit Model(const Package& p) : package(p), transform(p["transform"]), units(p["frame"].at("units")) {
        frame = p["frame"].at("shape").get<std::vector<hsize_t>>();
        padded = p["frame"].at("padded").get<std::vector<hsize_t>>();
        if (auto own = p.about.find("limits"); own != p.about.end() && own->is_array()) limits = own->get<std::array<double, 2>>();
        if (p.has("encoder")) autoencoder = std::make_unique<Autoencoder>(p);
    }

    FramesFile open_template() const { return FramesFile((package.folder / "template.h5").string()); }
};

// network values (n, 1, H, W) and mask of some frames, padded with what is masked; `ranges` gets the lowest and the highest valid intensity of each
static std::pair<at::Tensor, at::Tensor> batch_of(const Model& m, const FramesFile& file, hsize_t first, hsize_t n, std::vector<Range>& ranges) {
    auto values = file.read(first, n);
    auto valid = file.mask(first, n);
    int64_t height = int64_t(m.padded[0]), width = int64_t(m.padded[1]), rows = int64_t(file.height()), columns = int64_t(file.width());
    at::Tensor x = at::zeros({int64_t(n), 1, height, width}), mask = at::zeros({int64_t(n), 1, height, width}, at::kBool);
    float* to = x.data_ptr<float>();
    bool* good = mask.data_ptr<bool>();
    size_t from = 0;
    ranges.assign(n, Range{INFINITY, -INFINITY});
    for (int64_t i = 0; i < int64_t(n); ++i)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c, ++from) {
                int64_t at = (i * height + r) * width + c;
                good[at] = valid[from] != 0;
                if (!good[at]) continue;
                if (!std::isfinite(values[from])) refuse(file.path(), ": frame ", std::to_string(first + hsize_t(i)), " has a valid pixel that is not finite");
                to[at] = m.transform.forward(values[from]);
                ranges[size_t(i)].add(values[from]);
            }
    return {x, mask};
}

// intensities (n, y, x) of network values; 0 where `valid` is not, never negative where they are photons, and within the limits of the model or, where
// they are made from frames with these `ranges`, within the widened range of each
static std::vector<float> intensities(const Model& m, const at::Tensor& y, const unsigned char* valid, bool each, hsize_t rows, hsize_t columns, bool rounded, const std::vector<Range>& ranges = {}) {
    at::Tensor own = y.contiguous();
    const float* from = own.data_ptr<float>();
    int64_t n = own.size(0), height = own.size(2), width = own.size(3);
    std::vector<float> out(size_t(n) * rows * columns);
    size_t to = 0, frame = rows * columns;
    bool photons = m.units == "photon";
    for (int64_t i = 0; i < n; ++i) {
        Range limits = m.limits.value_or(Range{-INFINITY, INFINITY});
        if (m.limits && !ranges.empty()) limits.add(ranges[size_t(i)].widened());
        for (hsize_t r = 0; r < rows; ++r)
            for (hsize_t c = 0; c < columns; ++c, ++to) {
                if (!valid[each ? to : to % frame]) continue;
                float v = limits.held(m.transform.inverse(from[(i * height + int64_t(r)) * width + int64_t(c)]));
                if (photons) v = std::max(rounded ? std::nearbyint(v) : v, 0.0f);
                out[to] = v;
            }
    }
    return out;
}

static void run_on_file(const Model& m, bool encode, const std::string& in, const std::string& out, int64_t batch) {
    if (!m.autoencoder) refuse(m.package.folder.string(), " has no autoencoder; expected an export of vae_kl, vq or latent_diff");
    FramesFile file(in);
    if (std::string units = file.units(); !units.empty() && units != m.units)
        refuse(in, ": its frames are in ", units, "; expected ", m.units, ", as those of the exported model");
    if (m.frame.size() != 2 || file.height() != m.frame[0] || file.width() != m.frame[1])
        refuse(in, ": its frames have ", std::to_string(file.height()), " x ", std::to_string(file.width()), " pixels; expected ",
               std::to_string(m.frame[0]), " x ", std::to_string(m.frame[1]), ", which the model is exported for");
    FramesFile like = m.open_template();
    bool own = file.own();
    FramesWriter writer(out, own ? file.id() : like.id(), own ? file.data() : like.data(), own);
    writer.about("exported", m.package["source"].at("checkpoint").get<std::string>());
    writer.stack("intensity", {file.count(), file.height(), file.width()}, "frame y x");
    auto latent = m.package["latent"].at("shape").get<std::vector<hsize_t>>();
    if (encode) writer.stack("latent", {file.count(), latent[0], latent[1], latent[2]}, "frame channel v u");
    else writer.about("reconstruction", std::string("expected values"));
    for (hsize_t a = 0; a < file.count(); a += hsize_t(batch)) {
        hsize_t n = std::min(hsize_t(batch), file.count() - a);
        std::vector<Range> ranges;
        auto [x, mask] = batch_of(m, file, a, n, ranges);
        at::Tensor z = m.autoencoder->encode(x, mask)[0].contiguous();
        if (encode) {
            writer.write("latent", a, n, z.data_ptr<float>());
            auto same = file.read(a, n);
            writer.write("intensity", a, n, same.data());
        } else {
            auto valid = file.mask(a, n);
            auto made = intensities(m, m.autoencoder->decode(z), valid.data(), true, file.height(), file.width(), false, ranges);
            writer.write("intensity", a, n, made.data());
        }
    }
    writer.finish();
}

// ---- files as they arrive

static void watch(const Model& m, bool encode, const Options& o, int64_t batch) {
    if (!fs::is_directory(o.watch)) refuse("there is no folder ", o.watch, " to watch");
    if (o.out.empty()) refuse("--watch needs --out, the folder of the results");
    fs::create_directories(o.out);
    if (fs::equivalent(o.watch, o.out)) refuse("--out is the folder that is watched; expected another one");
    std::map<std::string, uintmax_t> size;  // a file is whole when it did not grow since the last look
    std::set<std::string> done;
    auto last = std::chrono::steady_clock::now();
    std::cout << "watching " << o.watch << std::endl;
    while (!stopped) {
        for (const auto& entry : fs::directory_iterator(o.watch)) {
            std::string name = entry.path().filename().string(), suffix = entry.path().extension().string();
            if (name[0] == '.' || !entry.is_regular_file() || (suffix != ".h5" && suffix != ".hdf5" && suffix != ".cxi" && suffix != ".nxs")) continue;
            fs::path out = fs::path(o.out) / (entry.path().stem().string() + ".h5");
            if (done.count(name) || stopped) continue;
            std::error_code gone;
            uintmax_t now = fs::file_size(entry.path(), gone);
            if (gone) continue;
            if (auto before = size.find(name); before == size.end() || before->second != now) {
                size[name] = now, last = std::chrono::steady_clock::now();
                continue;
            }
            done.insert(name), last = std::chrono::steady_clock::now();
            if (fs::exists(out)) continue;  // by an earlier process
            try {
                auto began = std::chrono::steady_clock::now();
                run_on_file(m, encode, entry.path().string(), out.string(), batch);
                std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
                std::cout << out.string() << " " << took.count() << " s" << std::endl;
            } catch (const Refused& error) {  // one bad file does not end the watch
                std::cerr << "xrddiff-infer: " << error.what() << std::endl;
            }
            last = std::chrono::steady_clock::now();
        }
        std::chrono::duration<double> quiet = std::chrono::steady_clock::now() - last;
        if (o.idle >= 0 && quiet.count() > o.idle) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
}

// ---- new frames

static void sample(const Model& m, const Options& o, const std::string& out) {
    if (m.package.has("transformer"))
        refuse(m.package.folder.string(), " draws frames token by token, which this program cannot; expected a model of whole frames, or xd.load_exported in Python");
    if (!m.package.has("denoiser")) refuse(m.package.folder.string(), " holds no denoiser; expected an export of ddpm or latent_diff");
    Sampling sampling(m.package);
    const Json& how = sampling.how();
    int64_t n = o.n.value_or(16), seed = o.seed.value_or(how.at("seed").get<int64_t>()), first = o.first.value_or(0);
    int64_t batch = o.batch.value_or(how.at("batch_size").get<int64_t>()), panels = sampling.panels();
    if (n < 1) refuse("-n is 0; expected 1 or more");
    Asked asked{o.conditions, {}, {}, first};
    for (const auto& [name, value] : how.at("condition").items())  // those of the export, where nothing else is asked for
        asked.conditions.try_emplace(name, value.is_string() ? value.get<std::string>() : value.dump());
    if (!o.maps.empty()) {
        h5::Id file(H5Fopen(o.maps.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
        if (file < 0) refuse(o.maps, " is no HDF5 file");
        for (const auto& [name, channels] : sampling.about().at("map_channels").items()) {
            if (!h5::has(file, "/" + name)) refuse(o.maps, " holds no map ", name);
            h5::Id data(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
            auto shape = h5::shape(data);
            const auto& drawn = sampling.shape();
            if (shape.size() != 4 || int64_t(shape[0]) < n || int64_t(shape[1]) != channels.get<int64_t>() || int64_t(shape[2]) != drawn[1] || int64_t(shape[3]) != drawn[2])
                refuse(o.maps, ": the map ", name, " has another shape than (", std::to_string(n), ", ", channels.dump(), ", ", std::to_string(drawn[1]), ", ", std::to_string(drawn[2]), ")");
            at::Tensor map = at::empty({int64_t(shape[0]), int64_t(shape[1]), int64_t(shape[2]), int64_t(shape[3])});
            if (H5Dread(data, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, map.data_ptr<float>()) < 0) refuse(o.maps, ": the map ", name, " cannot be read");
            asked.maps[name] = map;
        }
        if (h5::has(file, "/training_row")) {
            h5::Id data(H5Dopen2(file, "training_row", H5P_DEFAULT), H5Dclose);
            auto shape = h5::shape(data);
            if (shape.size() != 1 || int64_t(shape[0]) < n) refuse(o.maps, ": training_row has not the length of the maps");
            asked.rows.resize(shape[0]);
            if (H5Dread(data, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, asked.rows.data()) < 0) refuse(o.maps, ": training_row cannot be read");
        }
    }

    std::string path = (m.package.folder / "template.h5").string();
    h5::Id like(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
    h5::Id like_data(H5Dopen2(like, "/intensity", H5P_DEFAULT), H5Dclose);
    std::vector<hsize_t> frame = m.frame, all = {hsize_t(n)};
    all.insert(all.end(), frame.begin(), frame.end());
    size_t pixels = 1;
    for (hsize_t k : frame) pixels *= k;
    hsize_t rows = frame[frame.size() - 2], columns = frame.back();
    std::vector<unsigned char> valid(pixels, 1);
    if (h5::has(like, "/mask")) {
        h5::Id mask(H5Dopen2(like, "/mask", H5P_DEFAULT), H5Dclose), type(H5Dget_type(mask), H5Tclose);
        auto shape = h5::shape(mask);
        size_t stored = 1;
        for (hsize_t k : shape) stored *= k;
        if (stored != pixels || H5Tget_size(type) != 1) refuse(path, ": its mask does not fit its frames");
        H5Dread(mask, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, valid.data());
    }
    bool latent = !m.package["latent"].is_null();
    at::Tensor mean, std, mask;
    if (latent) {
        auto per_channel = [&](const char* name) {
            auto v = m.package["latent"].at("statistics").at(name).get<std::vector<double>>();
            return at::tensor(at::ArrayRef<double>(v), at::kDouble).to(at::kFloat).view({-1, 1, 1});
        };
        mean = per_channel("mean"), std = per_channel("std");
    } else {
        mask = at::zeros({panels, 1, int64_t(m.padded[0]), int64_t(m.padded[1])}, at::kBool);
        bool* good = mask.data_ptr<bool>();
        for (size_t i = 0; i < pixels; ++i) {
            size_t panel = i / (rows * columns), row = i / columns % rows;
            good[(panel * m.padded[0] + row) * m.padded[1] + i % columns] = valid[i] != 0;
        }
    }

    FramesWriter writer(out, like, like_data, false);
    writer.about("samples_are", latent ? std::string("expected values") : std::string("measurements"));
    const Json& source = m.package["source"];
    writer.about("checkpoint", source.at("checkpoint").get<std::string>()), writer.about("run", source.at("run").get<std::string>());
    writer.about("step", source.at("step").get<int64_t>()), writer.about("seed", seed), writer.about("batch_size", batch);
    writer.about("sampler", how.at("sampler").dump());
    writer.stack("intensity", all, frame.size() == 3 ? "frame panel ss fs" : "frame y x");
    std::vector<int64_t> numbers;
    for (int64_t chunk = first / batch; chunk * batch < first + n; ++chunk) {  // whole chunks: others of a batch change a frame's last bits
        std::vector<int64_t> wanted;
        for (int64_t i = chunk * batch; i < (chunk + 1) * batch; ++i) wanted.push_back(i);
        at::Tensor x = sampling.draw(wanted, seed, asked, mask);
        if (!at::isfinite(x).all().item<bool>()) refuse("the samples ", std::to_string(wanted.front()), " to ", std::to_string(wanted.back()), " are not finite");
        at::Tensor y = latent ? m.autoencoder->decode(x * std + mean) : x;
        int64_t a = std::max(first, wanted.front()), b = std::min(first + n, wanted.back() + 1);
        y = y.slice(0, (a - wanted.front()) * panels, (b - wanted.front()) * panels);
        std::vector<float> made;
        for (int64_t p = 0; p < panels; ++p) {  // each panel has a mask of its own
            auto one = intensities(m, y.slice(0, p, y.size(0), panels), valid.data() + size_t(p) * rows * columns, false, rows, columns, !latent);
            if (panels == 1) {
                made = std::move(one);
                break;
            }
            made.resize(size_t(b - a) * pixels);
            for (int64_t i = 0; i < b - a; ++i) std::copy_n(one.begin() + i * int64_t(rows * columns), rows * columns, made.begin() + int64_t((size_t(i * panels + p)) * rows * columns));
        }
        writer.write("intensity", hsize_t(a - first), hsize_t(b - a), made.data());
        for (int64_t i = a; i < b; ++i) numbers.push_back(i);
    }
    writer.column("sample", numbers);
    std::vector<int64_t> own = sampling.rows(numbers, seed, asked);
    for (const auto& [name, field] : sampling.about().at("fields").items()) {
        if (name.rfind("augment_", 0) == 0) continue;
        std::vector<double> column = sampling.column(name, own, asked);
        const Json& names = sampling.about().at("names").at(name);
        std::map<std::string, std::string> attrs;
        if (names.is_array()) attrs["classes"] = "json:" + names.dump();
        if (field.is_number()) writer.column(name, std::vector<int64_t>(column.begin(), column.end()), attrs);
        else writer.column(name, std::vector<float>(column.begin(), column.end()), attrs);
    }
    bool told = sampling.about().at("fields").contains("frame_panel"), cut = frame.size() == 2 && h5::has(like, "/panel_origin");
    for (const auto& [name, place] : sampling.places().items()) {
        if (place.empty()) continue;
        std::vector<double> column;
        for (int64_t row : own) column.push_back(place.at(size_t(row) % place.size()));
        if (name == "distance") writer.column(name, column, {{"units", "m"}});
        else if (!told && cut) writer.column(name, std::vector<int64_t>(column.begin(), column.end()));
    }
    writer.finish();
}

// ---- how fast

static void bench(const Package& package, int64_t n) {
    for (const auto& [name, about] : package["graphs"].items()) {
        Graph graph(package, name);
        for (int64_t batch : std::set<int64_t>{1, n}) {
            Tensors given;
            for (const auto& word : graph.order()) {
                const Json& kind = graph.inputs().at(word.get<std::string>());
                std::vector<int64_t> shape;
                for (const auto& k : kind.at("shape")) shape.push_back(k.is_number() ? k.get<int64_t>() : batch);
                given.push_back(at::ones(shape, Graph::type(kind.at("dtype"))));
            }
            graph(given);
            std::vector<double> seconds;
            for (double total = 0; seconds.size() < 5 || (total < 2 && seconds.size() < 200);) {
                auto began = std::chrono::steady_clock::now();
                graph(given);
                std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
                seconds.push_back(took.count()), total += took.count();
            }
            std::nth_element(seconds.begin(), seconds.begin() + long(seconds.size() / 2), seconds.end());
            std::cout << Json{{"graph", name}, {"batch", batch}, {"seconds", seconds[seconds.size() / 2]}} << std::endl;
        }
    }
}

// random numbers of keys, to be compared with those of Python
static void keys(int64_t seed) {
    for (int64_t i = 0; i < 4; ++i) {
        Philox rng({seed, std::string("condition"), i});
        std::vector<int64_t> drawn;
        for (int64_t n : std::initializer_list<int64_t>{10, 50, 1, 3000000000, 7}) drawn.push_back(rng.integer(n));
        at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed_from({seed, std::string("sample"), i}));
        at::Tensor noise = at::empty({20}).normal_(0, 1, generator);
        std::vector<float> first(noise.data_ptr<float>(), noise.data_ptr<float>() + 20);
        std::cout << Json{{"seed", seed_from({seed, std::string("sample"), i})}, {"integers", drawn}, {"normal", first}} << std::endl;
    }
}

static int run(const Options& o) {
    if (o.threads) at::set_num_threads(int(std::max<int64_t>(1, *o.threads)));
    if (o.command == "keys") return keys(whole("the seed", o.package)), 0;
    static const std::map<std::string, size_t> files = {{"check", 0}, {"reconstruct", 2}, {"encode", 2}, {"sample", 1}, {"bench", 0}};
    auto command = files.find(o.command);
    if (command == files.end()) refuse("there is no command ", o.command, "; expected check, reconstruct, encode, sample or bench");
    bool watches = !o.watch.empty();
    if (watches && command->second != 2) refuse("--watch is for reconstruct and encode");
    if (o.files.size() != (watches ? 0 : command->second))
        refuse(o.command, " got ", std::to_string(o.files.size()), " files; expected ", std::to_string(watches ? 0 : command->second), " (see xrddiff-infer --help)");
    Package package = open_package(o.package);
    check_processor(package["processor"]);
    if (o.command == "check") {
        const Json& source = package["source"];
        std::cout << o.package << ": run " << source["run"].get<std::string>() << ", step " << source["step"] << ", frames of " << package["frame"]["shape"].dump() << " px in "
                  << package["frame"]["units"].get<std::string>() << ", " << package["graphs"].size() << " graphs; every file is what was exported" << std::endl;
        return 0;
    }
    if (o.command == "bench") return bench(package, o.n.value_or(32)), 0;
    Model model(package);
    int64_t batch = o.batch.value_or(8);
    if (o.command == "sample") sample(model, o, o.files[0]);
    else if (watches) watch(model, o.command == "encode", o, batch);
    else run_on_file(model, o.command == "encode", o.files[0], o.files[1], batch);
    return 0;
}

int main(int argc, char** argv) {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // what goes wrong is said once, in a sentence
    std::signal(SIGTERM, [](int) { stopped = 1; });
    std::signal(SIGINT, [](int) { stopped = 1; });
    try {
        c10::InferenceMode guard;
        return run(parse(argc, argv));
    } catch (const Refused& error) {
        std::cerr << "xrddiff-infer: " << error.what() << std::endl;
        return 2;
    } catch (const nlohmann::json::exception& error) {
        std::cerr << "xrddiff-infer: the manifest lacks what this program needs: " << error.what() << std::endl;
        return 2;
    } catch (const std::exception& error) {
        std::string why = error.what();
        std::cerr << "xrddiff-infer: " << why.substr(0, why.find('\n')) << std::endl;
        return 1;
    }
}
