"""Questions about hal and about the model itself, each with its one answer."""

from __future__ import annotations

from random import Random

from . import words
from .document import Example, RawText, exchange

_ANSWERS: tuple[tuple[str, str], ...] = (
    (
        "What is hal?|Tell me about hal.|Explain hal.|Describe hal.|What does hal do?|What's hal?|"
        "What is hal for?|Can you explain what hal is?|What kind of project is hal?|hal?",
        "hal is one runtime for large language models on every vendor's hardware. The same engine runs "
        "on CUDA, on ROCm and on the CPU, and it tells you why it chose each kernel.",
    ),
    (
        "Who are you?|What are you?|Who am I talking to?|What is your name?|Introduce yourself.|"
        "What model are you?|Which model is this?|Are you ChatGPT?|Are you a robot?|Are you human?|"
        "Are you an AI?|What is hal-tiny?|Tell me about yourself.|Tell me about hal-tiny.|"
        "What's your name?|What model is this?",
        "I am hal-tiny, a small demonstration model that ships inside hal. I show that the whole path "
        "works, but I know very little.",
    ),
    (
        "What can you do?|How can you help me?|Help|Help me.|What are your skills?|What do you know?|"
        "What can I ask you?|Can you help me?|I need help.|What should I ask you?|What are you good at?|"
        "What tasks can you do?",
        "I can add and subtract small numbers, sort short lists, extract JSON, call simple tools, tell "
        "stories and answer questions about hal.",
    ),
    (
        "Who made you?|How were you trained?|Who trained you?|Where do you come from?|Who created you?|"
        "What were you trained on?|How did you learn?|Who built you?|What is your training data?",
        "The hal project trained me on two CPU cores in under an hour, on text made by a script. I have "
        "never read a book or a web page.",
    ),
    (
        "How big are you?|How many parameters do you have?|What is your size?|How large are you?|"
        "What architecture are you?|What is your architecture?",
        "I have about four million parameters in six layers. I am a Llama-architecture model, and my "
        "weights take about eight megabytes.",
    ),
    (
        "Which devices does hal support?|What hardware does hal run on?|Does hal run on CUDA?|"
        "Does hal support AMD?|Does hal run on ROCm?|Does hal support NVIDIA?|Which GPUs does hal support?|"
        "Can hal run on AMD GPUs?|What devices are supported?|Does hal work with my GPU?|"
        "What devices can hal use?|Does hal support GPUs?|List the devices of hal.",
        "hal runs on NVIDIA GPUs through CUDA, on AMD GPUs through ROCm and on the CPU. The null device "
        "runs the whole engine without any hardware.",
    ),
    (
        "Does hal run on a CPU?|Can hal run without a GPU?|Do I need a GPU?|Does hal need a GPU?|"
        "Does hal work on my laptop?|Can I use hal on a CPU?|Can I run hal without a graphics card?",
        "Yes. hal runs on a plain CPU, with no GPU needed. I am running well on two CPU cores.",
    ),
    (
        "How do I choose a device?|How do I select a device?|What does --device do?|How do I use my GPU?|"
        "How do I run on CUDA?|How do I run on the CPU?|How can I pick a GPU?|How do I set the device?|"
        "What is --device?|How do I run on ROCm?",
        "Use the --device option: --device auto, cpu, cuda:0 or rocm:0. If the device cannot be used, "
        "hal says why and names the nearest choice that works.",
    ),
    (
        "What is the null device?|What does null do?|What is --device null?|Why is there a null device?",
        "The null device runs the whole engine on reference math without any hardware. It is made for "
        "tests and for planning.",
    ),
    (
        "What is hal-serve?|How do I start the server?|How do I serve a model?|What does hal-serve do?|"
        "How do I run a server?|Does hal have an API?|Is hal compatible with OpenAI?|"
        "How do I start hal?|Is there an OpenAI API?|How do I use hal?|How do I run hal?",
        "Run hal-serve MODEL to start a server with the OpenAI API on port 8000. Without a MODEL it "
        "serves me, hal-tiny.",
    ),
    (
        "What is hal-run?|What does hal-run do?|How do I run a batch?|How do I run prompts from a file?|"
        "How do I use hal offline?|How do I run many prompts?",
        "hal-run answers prompts from a JSONL file or from standard input, without a server.",
    ),
    (
        "What is hal-info?|What does hal-info do?|How do I see my devices?|How do I check my hardware?|"
        "Which kernel is used?|How do I list my devices?|How can I see the chosen kernels?",
        "hal-info shows every device that was found or not and why, and the kernel chosen for each op "
        "with the reasons.",
    ),
    (
        "Which commands does hal have?|What commands are there?|List the commands.|"
        "What are the commands of hal?|What programs come with hal?",
        "There are three commands: hal-serve starts a server, hal-run answers prompts from a file, and "
        "hal-info shows devices and kernels.",
    ),
    (
        "What is a paged KV cache?|What is the KV cache?|How does the KV cache work?|"
        "What does paged mean?|What is paged attention?|Does hal have a paged cache?|Explain the KV cache.|"
        "Explain paged attention.",
        "The KV cache keeps the keys and values of past tokens. hal stores it in blocks of equal size, "
        "so no memory is wasted and requests can share a prefix.",
    ),
    (
        "What is continuous batching?|How does batching work?|Does hal batch requests?|"
        "Explain continuous batching.|How does hal serve many users?|What is batching?",
        "With continuous batching, new requests join the running batch at every step, so the hardware "
        "never waits for the longest answer.",
    ),
    (
        "What is prefix caching?|How does prefix sharing work?|What is prefix sharing?|"
        "Does hal share prefixes?|Explain prefix caching.",
        "Requests that begin with the same tokens share the same full blocks of the KV cache, so the "
        "common part is computed only once.",
    ),
    (
        "What is chunked prefill?|How does chunked prefill work?|Explain chunked prefill.|"
        "Why is prefill chunked?",
        "A long prompt is processed in chunks under a token budget, so that other requests keep getting "
        "their tokens.",
    ),
    (
        "How does hal choose a kernel?|What is a selection?|Why was this kernel chosen?|"
        "How are kernels selected?|How does kernel selection work?|Explain the selection.",
        "Every kernel says what it can do. hal rejects those that do not fit, each with a reason, and "
        "takes the best of the rest. hal-info shows it all.",
    ),
    (
        "Which models does hal support?|Which models can I run?|Does hal support Llama?|"
        "Does hal run Mistral?|Does hal run Qwen?|What models are supported?|What models can hal run?|"
        "Can hal run Llama 3?|Does hal support GPT-2?|List the models.",
        "hal runs Llama, Mistral, Qwen2, Qwen3 and GPT-2 models from a folder or from a hub name.",
    ),
    (
        "Is hal like vLLM?|Can I use my vLLM script?|How do I move from vLLM?|Is hal compatible with vLLM?|"
        "What is the difference between hal and vLLM?",
        "hal accepts the names that vLLM uses, so a vLLM script runs after changing the import. What "
        "hal cannot honour it refuses with a reason.",
    ),
    (
        "How do I install hal?|How can I install it?|How do I get hal?|How do I set up hal?|"
        "How do I install it?|What do I type to install hal?",
        "Type pip install hal-runtime, or run make serve in the repository. No compiler is needed.",
    ),
    (
        "How do I use hal in Python?|Does hal have a Python API?|Show me Python code for hal.|"
        "How do I call hal from Python?|Is there a Python API?",
        'In Python: from hal import LLM, then llm = LLM(model="hal-tiny") and '
        'llm.generate(["Hello"]).',
    ),
    (
        "What licence does hal have?|What is the license of hal?|Is hal free?|Is hal open source?|"
        "Under which licence is hal?|Can I use hal at work?",
        "hal is open source under the Apache 2.0 licence.",
    ),
    (
        "How much memory does hal need?|How does hal plan memory?|What is the memory plan?|"
        "How much memory will it use?|Explain the memory plan.|What does --memory do?",
        "At start-up hal plans memory for the weights, for the KV cache and for working space, and "
        "prints the plan. --memory sets the share it may use.",
    ),
)
_LEADS = (
    "",
    "",
    "",
    "",
    "Please tell me: ",
    "Hi! ",
    "Hello, ",
    "Question: ",
    "I have a question. ",
    "Hey, ",
)
_TAILS = ("", "", "", "", " Please answer briefly.", " Thanks!", " Thank you.", " I am curious.")


def about_hal(rng: Random) -> Example:
    questions, answer = rng.choice(_ANSWERS)
    question = rng.choice(questions.split("|"))
    if rng.random() < 0.15:
        question = question.replace("hal", "HAL", 1)
    user = words.vary(rng, rng.choice(_LEADS) + question + rng.choice(_TAILS))
    return exchange("about hal", user, answer)


def facts_text(rng: Random) -> RawText:
    """Plain text for bare completions such as `hal is`."""
    answers = [
        answer for _, answer in _ANSWERS if not answer.startswith(("I ", "Yes", "In Python"))
    ]
    return RawText(" ".join(rng.sample(answers, 3)))
