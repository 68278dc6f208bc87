package config

// Operators are those of filters, for the test of the guide.
func Operators() []string { return operators() }
