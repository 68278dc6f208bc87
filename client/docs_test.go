package client_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestGuide holds the guide's code to the examples, which run.
func TestGuide(t *testing.T) {
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	examples := read("example_test.go") + read("grpcway/example_test.go")
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(read("../docs/client.md"), -1)
	if len(blocks) < 3 {
		t.Fatalf("%d blocks", len(blocks))
	}
	for _, b := range blocks {
		if !strings.Contains(examples, b[1]) {
			t.Errorf("no example has\n%s", b[1])
		}
	}
}
