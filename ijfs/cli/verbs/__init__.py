"""One module per verb or small family of verbs, imported only when its verb is called (`main.VERBS`)."""
