"""Questions with a yes or a no: values in, a CheckResult out. Nothing is read, written or remembered."""
