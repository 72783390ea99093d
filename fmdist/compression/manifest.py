"""The artifact's ``manifest.json``: what each key means, and the function that assembles it.

``fmdist.storage.seal`` writes it last, which commits the artifact. Numbers are in the unit that their name
ends in; ``bytes`` without a prefix is the size on disk. Metrics are plain numbers by name. A key marked `?`
may be missing; every other key is always there.

::

    format            1
    kind              "artifact"
    name              the recipe's name
    created           UTC, ISO 8601
    source            the run that it was made from
    fingerprint       SHA-256 of the trained weights
    seed              the recipe's seed
    signature         {inputs: [{name, shape, dtype}], outputs: [{name, shape, dtype}]}; null is a free axis
    preprocessing     what `fmdist.data.preprocess.Preprocess.from_json` reads
    target            {kind: "class"|"labels"|"value", names: [...]}
    labels            the target's names, in the order of the outputs
    decoding          the rule that `fmdist.tasks.decoding.decode` takes
    primary           {name, mode: "max"|"min", max_drop}; max_drop is in the metric's own units
    parameters        number of weights of the original model
    models            {runtime: {variant: {file, files, bytes, gzip_bytes, size_ratio}}}
                      runtime: "openvino"|"onnxruntime"; variant: "fp32"|"int8"; `file` is what a runtime
                      opens, `files` all that it needs; size_ratio = bytes / bytes of the same runtime's fp32
    results           rows, one per (runtime, variant, precision), torch's first; on the TEST split:
        runtime         "torch" (eager, the original) | "openvino" | "onnxruntime"
        variant         "fp32" | "int8"
        precision       "f32" (asked for) | "default" (what the runtime chooses on this CPU)
        executed        {precision: number of layers with weights that really ran in it}, such as
                        {"int8": 6} or {"bf16": 6}; {} for torch
        metrics         {name: value}
        value           the primary metric
        drop            by how much `value` is worse than torch's, >= 0 if worse, in the metric's own units
        bytes, gzip_bytes    of the files that the runtime needs (torch: model.safetensors)
        size_ratio      bytes / bytes of the same runtime's fp32
        latency_ms      {median, p10} of one sample   \
        throughput_per_s  samples per second           } null if this row was not measured
        speedup         torch's median / this median  /
    parity            rows: {runtime, batch, max_abs_difference, max_abs_reference, relative, tolerance};
                      FP32 (float32 asked for) against torch; relative = difference / reference
    validation        {torch: {name: value}, size}: the original on the split that chose candidates
    passes            one per pass, in order:
        stage           name of its folder under stages/
        kind, config    as in the recipe
        seconds         that it took
        candidates      rows: {runtime, setting, values: {precision: primary metric on validation}, value
                        (the worst of them), drop, error, seconds, chosen}; error = relative RMS difference
                        of the outputs from the float model's
        coverage        {runtime: {layers, quantized_layers, parameters, quantized_parameters,
                        left: [{name, type, shape, parameters, reason}]}}
        before, after   {runtime: {value, drop, bytes, gzip_bytes, latency_ms, throughput_per_s}}; on the test
                        split at the default precision; `before` is fp32
    stages            rows {name, seconds}: every stage, in order
    benchmark         {threads, batch_size, samples: {row: n}, torch_threads}
    evaluation        {test_size, validation_size, calibration_size, split_sha256?}
    hardware          {cpu, cores, flags: [...], system}
    versions          {python, fmdist, torch, openvino?, onnx?, onnxruntime?, nncf?, numpy}
    recipe            the resolved recipe
    files             {path: {sha256, bytes}}, by `storage.seal`

``report.html`` is drawn from this file afterwards: it isn't among `files` and may be written again at any
time.

Layout: ``openvino/model.xml`` + ``.bin`` is what runs: INT8 if the model was quantized, and then FP32 stands
beside it as ``openvino/model.fp32.xml``; without a pass it is FP32. ``onnx/model.onnx`` is FP32 and
``onnx/model.int8.onnx`` INT8. Always ask `models` for the name.
"""
