from lmms_eval import models
from lmms_eval.tasks import ConfigurableMessagesTask, load_yaml

MEAN = lambda values: sum(values)/len(values)


def simple_evaluate(model, model_args="", tasks=(), batch_size=1, limit=None, task_manager=None, bootstrap_iters=0, **unused):
    lm = models.get_model(model).create_from_arg_string(model_args, dict(batch_size=batch_size, max_batch_size=None, device=None))
    made = {t: ConfigurableMessagesTask(load_yaml(task_manager.task_index[t])) for t in tasks}
    for name, task in made.items(): lm.task_dict[name] = task.dataset
    asked = {name: task.requests(limit) for name, task in made.items()}
    every = [r for rs in asked.values() for r in rs]
    for r, said in zip(every, lm.generate_until(every), strict=True): r.resps.append(said)
    lm.clean()
    results, samples = {}, {}
    for name, task in made.items():
        docs = task.dataset[task.split]
        found = [task.config["process_results"](docs[r.doc_id], [r.resps[0].strip()]) for r in asked[name]]
        results[name] = {f"{m['metric']},none": (MEAN if m["aggregation"] == "mean" else m["aggregation"])([f[m["metric"]] for f in found]) for m in task.config["metric_list"]}
        samples[name] = [dict(doc_id=r.doc_id, doc=docs[r.doc_id], target=docs[r.doc_id][task.config["doc_to_target"]], resps=[r.resps], **f) for r, f in zip(asked[name], found)]
    return dict(results=results, samples=samples)
