package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Pictures are well-formed, and have what was measured in them.
func TestPictures(t *testing.T) {
	dir := t.TempDir()
	lines := filepath.Join(dir, "lines")
	text := `{"scenario":"idle","streams":500,"rss_mib":100}
{"scenario":"endpoint-all","streams":500,"rss_mib":120,"cp_cpu_each_s":0.05,"cdf_s":[9,9]}
{"scenario":"idle","streams":1000,"rss_mib":180}
{"scenario":"endpoint-all","streams":1000,"rss_mib":1990,"cp_cpu_each_s":0.1,"cdf_s":[0.01,0.2,0.5]}
`
	if err := os.WriteFile(lines, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{dir, lines}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"propagation.svg": "of 1000 streams", "streams.svg": ">200<"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), want) || strings.Contains(string(b), "NaN") || strings.Count(string(b), "<path d=\"M") < 5 {
			t.Errorf("%s: want %q in it:\n%s", file, want, b)
		}
		for dec := xml.NewDecoder(strings.NewReader(string(b))); ; {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
		}
	}
	if err := run([]string{dir}); err == nil {
		t.Error("no lines, and no error")
	}
}
