"""The comparison: scores with intervals, paired differences, claims, costs, pictures, one report.

Reads run directories and nothing else; imports neither torch nor transformers nor vllm. Heavy
libraries (pandas, matplotlib, scipy.stats) are imported inside the functions that need them, so that
`onpol compare` starts quickly. Entry point: `onpol_cli.comparison.compare.compare`.
"""
