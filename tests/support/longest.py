"""The files of tests that take longest, in that order: CPU seconds on 2026-11-29."""

from __future__ import annotations

# A file's tests go to one process, which has made what they share: those that take longest begin first, so that no
# process is left alone with one of them at the end. Of the slow tests those are the pipelines and a real model.
LONGEST = """
docs/test_pipelines models/test_models docs/test_house methods/test_executors store/test_faults methods/test_ray
laws/test_scores docs/test_docs verbs/test_ingest methods/test_embeddings verbs/test_audit laws/test_one_file
tables/test_dry_run methods/test_gradient_scores laws/test_laws_kinds training/test_online store/test_s3
gradients/test_gradients methods/test_dualsft verbs/test_runs verbs/test_mix methods/test_vector_selectors
docs/test_wheel methods/test_near_dup methods/test_blends docs/test_real_data cli/test_stdin
tables/test_units_of_models verbs/test_compare cli/test_cli training/test_choosing_projections tables/test_prices
laws/test_selectors methods/test_vector_selectors_in_a_workspace methods/test_decontaminate methods/test_scores
tables/test_model_scores training/test_replay web/test_page models/test_gguf tables/test_neighbors verbs/test_evaluate
training/test_choosing_updates numerics/test_diagnosis pages/test_pages tables/test_vector_tables methods/test_mixers
verbs/test_select verbs/test_prune training/test_training methods/test_long_horizon_selectors verbs/test_report
verbs/test_audit_adapter verbs/test_audit_arms verbs/test_audit_grid verbs/test_audit_overlap
methods/test_less training/test_masked_training methods/test_round_trips web/test_server verbs/test_mask
tables/test_score_stage store/test_fuzzed_rows
""".split()
