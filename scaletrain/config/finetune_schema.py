"""The fine-tuning recipe: the sections that it has beside those of every run. Pure; no torch."""

from typing import Annotated, Literal

from pydantic import Field

from scaletrain.config.schema import BaseRecipe, Fraction, NonNegative, Optim, Positive, Real, Section, Train

TaskKind = Literal["classify", "tag", "span_qa", "sft"]
AdapterKind = Literal["none", "lora", "dora", "rslora", "ia3", "prompt_tuning"]
Place = Annotated[str, Field(min_length=1)]


class Generation(Section):
    """How an evaluation of task.kind=sft writes answers."""

    metrics: tuple[Literal["bleu", "chrf", "ter", "rouge", "exact_match", "f1"], ...] = ()
    """What compares the answers with the references; none: no text is written, an evaluation tells loss and
    perplexity."""
    tokenizer: Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"] = "13a"
    """What finds the words of BLEU, by sacrebleu's names: 13a for languages with spaces between words."""
    max_new_tokens: Positive = 128
    temperature: Annotated[Real, Field(ge=0)] = 0.0
    """0: always the likeliest token."""
    num_beams: Positive = 1


class TaskSection(Section):
    kind: TaskKind
    """classify: a label, several or a number for a text or a pair. tag: a label for each word. span_qa: the answer's
    place in a text. sft: answers to prompts, the loss on the answers only."""
    multi_label: bool = False
    """classify: an example may have any number of the labels."""
    regression: bool = False
    """classify: the label is a number."""
    labels: tuple[str, ...] = ()
    """classify, tag: the labels in their order; default: those of the training data, sorted."""
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[Real, Field(gt=0)]] = "none"
    """classify with one label: what the loss of an example counts, by its label. balanced: examples / (labels x
    examples of the label)."""
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """classify with one label, tag without a CRF, sft: share of the target that goes to all labels alike."""
    crf: bool = False
    """tag: a linear-chain CRF over the labels instead of one softmax a word."""
    word_label: Literal["first", "all"] = "first"
    """tag without a CRF: which subwords of a word bear its label."""
    null_threshold: Real = 0.0
    """span_qa: an answer must score this much more than "no answer"."""
    max_answer_tokens: Positive = 30
    """span_qa: longest answer that is given."""
    generate: Generation = Generation()


class FinetuneData(Section):
    train: Place | tuple[Place, ...]
    """File, glob or several: .jsonl .json .csv .tsv .parquet .conll .conllu .po, or two texts of equal lines
    (`de.txt|en.txt`)."""
    validation: Place | tuple[Place, ...] | None = None
    validation_share: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """Without validation: this share of the training examples is held out, the same ones in each launch."""
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "conll", "conllu", "squad", "lines", "po"] = (
        "auto"
    )
    """auto: by the name's ending; squad: SQuAD's JSON; lines: two texts of equal lines."""
    columns: dict[str, str] = {}  # noqa: RUF012 (pydantic copies it)
    """Our field -> the file's column: text, pair, label; tokens, tags; id, question, context, answers; messages,
    conversations, instruction, input, output, prompt, response, source, target. CoNLL: column numbers from 0, -1 the
    last."""
    label_separator: str | None = None
    """classify with task.multi_label: what divides the labels in a text column, such as `;`."""
    tag_scheme: Literal["auto", "bio", "plain"] = "auto"
    """bio: tags are B-X, I-X and O, and entities are scored; plain: each word's tag is scored."""
    system: str | None = None
    """sft: a system message before each example that has none."""
    prompt: str | None = None
    """sft: the user's message as a template over the columns, such as `Translate to German: {source}`."""
    response: str | None = None
    """sft: the answer as a template, such as `{target}`."""
    max_length: Annotated[Positive, Field(ge=8)] = 512
    """Tokens a row, at most."""
    stride: NonNegative | None = None
    """span_qa, tag: tokens that the windows of a longer text share; default: a quarter of max_length."""
    packing: bool = True
    """sft: several examples in a row, each seeing itself only."""
    too_long: Literal["truncate", "skip"] = "truncate"
    """classify, sft: what becomes of an example that is longer than max_length."""
    on_fault: Literal["refuse", "skip"] = "refuse"
    """When examples are at fault (a missing column, an unknown label, an empty text, an answer that is not in the
    context): refuse them with their places, or train without them and say how many."""
    max_examples: Positive | None = None
    """The first so many examples of train."""
    shuffle: bool = True
    prefetch_steps: Positive = 4


class FinetuneModel(Section):
    path: Place
    """Hugging Face folder (what `scaletrain export` writes too), run folder's export, or hub name."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    tokenizer: str | None = None
    """Folder or hub name, where the model's own folder has none."""
    chat_template: str | None = None
    """sft: `chatml`, or a file with a Jinja template, where the tokenizer has none."""
    pad_token: str | None = None
    """A token of the vocabulary to pad with, where the tokenizer names none; default: the end-of-text token."""
    dropout: Fraction | None = None
    """All dropout rates of the model; default: the model's own."""
    freeze: Literal["none", "embeddings", "all_but_head"] = "none"
    """Weights that are not trained, without an adapter."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Load the frozen base model of an adapter in fewer bits, by bitsandbytes."""


class Adapter(Section):
    kind: AdapterKind = "none"
    """none: all weights are trained. The others train a few new ones: Hu et al. 2021 (lora), Liu et al. 2024 (dora),
    Kalajdzievski 2023 (rslora), Liu et al. 2022 (ia3), Lester et al. 2021 (prompt_tuning)."""
    rank: Positive = 16
    alpha: Annotated[Real, Field(gt=0)] | None = None
    """Scale of a LoRA update is alpha / rank (rslora: alpha / sqrt(rank)); default: 2 x rank."""
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    targets: Literal["auto", "all-linear"] | tuple[str, ...] = "auto"
    """Names of the layers that are adapted, such as [q_proj, v_proj]; auto: by the model's family."""
    virtual_tokens: Positive = 20
    """prompt_tuning."""
    prompt_text: str | None = None
    """prompt_tuning: text whose embeddings the virtual tokens begin with."""


class FinetuneTrain(Train):
    max_epochs: Annotated[Real, Field(gt=0)] | None = None
    """Passes over the training data; give this, max_steps or max_tokens."""


class FinetuneOptim(Optim):
    lr: Annotated[Real, Field(gt=0)] = 2e-5
    min_lr_ratio: Fraction = 0.0
    schedule: Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"] = "linear"
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Annotated[Real, Field(ge=0)] = 0.01
    layer_decay: Annotated[Real, Field(gt=0, le=1)] = 1.0
    """The learning rate of a layer is this share of the next one's (Howard and Ruder 2018); 1: one rate for all."""


class FinetuneRecipe(BaseRecipe):
    """A fine-tuning recipe."""

    task: TaskSection
    data: FinetuneData
    model: FinetuneModel
    adapter: Adapter = Adapter()
    train: FinetuneTrain = FinetuneTrain()
    optim: FinetuneOptim = FinetuneOptim()
