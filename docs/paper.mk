# One target for each table and figure of the AlphaEdit paper that a run makes (docs/reproducing.md). Each goes on where
# it stopped. `make paper` runs all of them, `make results` copies what they found into docs/results and the pages.

RUNS  ?= runs/paper
DATA  ?= ../shared/data
EDITS ?= 100

CF      := --data $(DATA)/counterfact/counterfact_500.json
ZSRE    := --data $(DATA)/zsre/zsre_mend_train-1k.json
METHODS := memit memit+P rect rect+P prune prune+P rome rome+P alphaedit
COMPARE  = $(BIN)/alphaedit compare --batch 50 --edits $(EDITS) --quiet

PAPER := table1 table1-zsre figure4 figure5 figure6 figure7a figure7b figure8 c1 c5 c6 c7-knowedit c7-mquake c8 c9 \
         threshold L2 qaedit frontier-counterfact frontier-zsre frontier-qaedit \
         settings-counterfact settings-zsre settings-qaedit settings-gemma
# Those that take longest, or whose numbers the frontier has too, can be made smaller: FEW facts.
FEW ?= 30
PAPER_LONG := successors-once successors-now successors-stream successors-trainer
.PHONY: paper results successors $(addprefix paper-,$(PAPER) $(PAPER_LONG))

paper: $(addprefix paper-,$(PAPER))

results:
	$(BIN)/python docs/results.py collect $(RUNS)
	$(BIN)/python docs/results.py pages

# Tables. ROME and FT write one fact at a time.
paper-table1:
	$(COMPARE) $(CF) --methods $(METHODS) in-context --texts 20 --keep-sessions --out $(RUNS)/table1

paper-table1-zsre:
	$(COMPARE) $(ZSRE) --methods $(METHODS) in-context --out $(RUNS)/table1-zsre

paper-qaedit:
	$(COMPARE) --data $(DATA)/qaedit/qaedit_500.json --methods memit memit+P alphaedit in-context --answers 50 --out $(RUNS)/qaedit

# Capability and hidden states need no edits of their own: table 1's are kept.
paper-figure4 paper-figure7b: paper-table1
	$(COMPARE) $(CF) --methods memit memit+P rect rect+P prune prune+P alphaedit --every 50 --tasks $(DATA)/glue --task-limit 50 --keep-sessions --out $(RUNS)/table1

paper-figure5: paper-table1
	$(COMPARE) $(CF) --methods memit memit+P alphaedit --shift $(DATA)/known/known_1000.json --keep-sessions --out $(RUNS)/table1

# With a text for K0, and enough edits for the methods to come apart. PRUNE is left out: its damping never acts here, it is
# MEMIT (table 1), and ROME, which has ruined the model by then.
WIKITEXT = --threshold 2e-2 --corpus $(RUNS)/facts/corpus.txt --tokens 120000 --held-out $(RUNS)/facts/held-out.txt

$(RUNS)/facts/corpus.txt $(RUNS)/facts/held-out.txt: $(DATA)/wikitext2/valid.txt
	$(BIN)/python docs/results.py text $< $(RUNS)/facts/corpus.txt $(RUNS)/facts/held-out.txt

# A fifth of it, where many variants are measured.
$(RUNS)/facts/short.txt: $(RUNS)/facts/held-out.txt
	head -c 12000 $< > $@

paper-figure6: $(RUNS)/facts/corpus.txt
	$(COMPARE) $(CF) --edits 500 $(WIKITEXT) --methods alphaedit alphaedit@nas=true memit memit+P memit-seq rect rect+P --tasks $(DATA)/glue --task-limit 50 --out $(RUNS)/figure6

paper-figure7a:
	$(COMPARE) $(CF) --methods memit memit+P rect rect+P alphaedit --study relations --out $(RUNS)/figure7a

paper-figure8:
	$(COMPARE) $(CF) --batch 25 --methods memit alphaedit --tasks $(DATA)/glue --task-limit 50 --out $(RUNS)/figure8

paper-c1:
	$(COMPARE) $(CF) --edits 10 --methods memit prune rect alphaedit --study cases --texts 10 --out $(RUNS)/c1

# EasyEdit's GRACE and FT: pip install easyeditor's requirements first.
paper-c5:
	$(COMPARE) $(CF) --edits 20 --methods alphaedit easyedit:GRACE easyedit:FT --out $(RUNS)/c5

paper-c6:
	$(COMPARE) $(CF) --edits $(FEW) --models gemma-3-270m --methods memit memit+P rect alphaedit --out $(RUNS)/c6

paper-c7-knowedit:
	$(COMPARE) --data $(DATA)/knowedit/wiki_recent.json $(DATA)/knowedit/wikibio.json --edits $(FEW) --skip-bad --methods memit rect alphaedit --out $(RUNS)/c7-knowedit

paper-c7-mquake:
	$(COMPARE) --data $(DATA)/mquake/MQuAKE-hard.json --edits $(FEW) --methods memit rect alphaedit --out $(RUNS)/c7-mquake

paper-c8:
	$(COMPARE) $(CF) --edits 50 --targets once --study corpus-size --out $(RUNS)/c8

paper-c9:
	$(COMPARE) $(CF) --batch 100 --methods memit alphaedit --study runtime --out $(RUNS)/c9

paper-threshold paper-L2: paper-%:
	$(COMPARE) $(CF) --targets once --study $* --out $(RUNS)/$*

# Facts that no table of methods uses (the stream below ends with some): the settings that ship for SmolLM2 were chosen on these.
$(RUNS)/facts/%.json:
	$(BIN)/python docs/results.py last 100 $(wildcard $(DATA)/*/$*.json) $@

# The settings that ship, without P and with it, on the same facts.
paper-settings-counterfact: $(RUNS)/facts/counterfact_flat_3000.json
paper-settings-zsre: $(RUNS)/facts/zsre_mend_train-1k.json
paper-settings-qaedit: $(RUNS)/facts/qaedit_500.json
paper-settings-counterfact paper-settings-zsre paper-settings-qaedit: paper-%:
	$(COMPARE) --data $< --targets once --methods memit memit+P rect rect+P --out $(RUNS)/$*

# CounterFact is in C.6.
paper-settings-gemma: $(addprefix $(RUNS)/facts/,zsre_mend_train-1k.json qaedit_500.json) | $(RUNS)/facts/short.txt
	$(COMPARE) --models gemma-3-270m --data $^ --held-out $(RUNS)/facts/short.txt --edits 20 --targets once --methods memit memit+P --out $(RUNS)/settings-gemma

# Forty variants each, and QAEdit asks seven questions about each fact.
paper-frontier-zsre: EDITS = 50
paper-frontier-qaedit: EDITS = 20
paper-frontier-qaedit: HELD_OUT = --held-out $(RUNS)/facts/short.txt
paper-frontier-counterfact: $(RUNS)/facts/counterfact_flat_3000.json
paper-frontier-zsre: $(RUNS)/facts/zsre_mend_train-1k.json
paper-frontier-qaedit: $(RUNS)/facts/qaedit_500.json | $(RUNS)/facts/short.txt
paper-frontier-counterfact paper-frontier-zsre paper-frontier-qaedit: paper-%:
	$(COMPARE) --data $< $(HELD_OUT) --study frontier --methods memit memit+P --out $(RUNS)/$*

# docs/successors.md, hours, so not part of `make paper`: 2,000 edits, with targets that all variants share, and with each variant's own; a stream; a trainer.
LONG = --data $(DATA)/counterfact/counterfact_flat_3000.json --edits 2000 --every 250 --sample 200 $(WIKITEXT) --keep-sessions

successors: $(addprefix paper-,$(PAPER_LONG))

paper-successors-once: $(RUNS)/facts/corpus.txt
	$(COMPARE) $(LONG) --targets once --methods memit memit-seq memit-seq+P memit-seq+aligned+P alphaedit alphaedit+revive alphaedit+sphere alphaedit@nas=true betaedit@leakage=300 betaedit@leakage=300@nas=true evoedit encore --out $(RUNS)/successors-once

paper-successors-now: $(RUNS)/facts/corpus.txt
	$(COMPARE) $(LONG) --methods alphaedit alphaedit@nas=true betaedit@leakage=300@nas=true alphaedit@blue=true --out $(RUNS)/successors-now
	$(COMPARE) $(LONG) --every 2000 --answers 50 --norms --methods alphaedit alphaedit@nas=true betaedit@leakage=300@nas=true --out $(RUNS)/successors-now

$(RUNS)/facts/last-150/%.json:
	$(BIN)/python docs/results.py last 150 $(wildcard $(DATA)/*/$*.json) $@

paper-successors-stream: $(addprefix $(RUNS)/facts/last-150/,counterfact_flat_3000.json zsre_mend_train-1k.json wiki_recent.json) | $(RUNS)/facts/corpus.txt
	$(COMPARE) --edits 450 --data $^ --stream --skip-bad --every 150 --sample 100 $(WIKITEXT) --keep-sessions --methods alphaedit alphaedit@nas=true --out $(RUNS)/successors-stream

TRAINER := examples/fine_tuning.py:edit
paper-successors-trainer: $(RUNS)/facts/corpus.txt
	$(COMPARE) $(CF) $(WIKITEXT) --methods alphaedit $(TRAINER) $(TRAINER)+P $(TRAINER)+revive $(TRAINER)+crisp --out $(RUNS)/successors-trainer
