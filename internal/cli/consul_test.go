package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// How a Consul is reached is what the environment of Consul's own tools says.
func TestConsulAccess(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flag, variable, empty := file("flag", "of-flag\n"), file("variable", "of-file\n"), file("empty", "\n")
	for name, c := range map[string]struct {
		env                            map[string]string
		file, address                  string
		wantToken, wantAddress, wantNo string
	}{
		"nothing":             {address: "127.0.0.1:8500", wantAddress: "127.0.0.1:8500"},
		"token":               {env: map[string]string{"CONSUL_HTTP_TOKEN": "t"}, wantToken: "t"},
		"file before token":   {env: map[string]string{"CONSUL_HTTP_TOKEN": "t", "CONSUL_HTTP_TOKEN_FILE": variable}, wantToken: "of-file"},
		"flag before all":     {env: map[string]string{"CONSUL_HTTP_TOKEN": "t", "CONSUL_HTTP_TOKEN_FILE": variable}, file: flag, wantToken: "of-flag"},
		"no file":             {file: filepath.Join(dir, "none"), wantNo: "no such file"},
		"empty file":          {file: empty, wantNo: "is empty"},
		"TLS":                 {env: map[string]string{"CONSUL_HTTP_SSL": "true"}, address: "127.0.0.1:8501", wantAddress: "https://127.0.0.1:8501"},
		"TLS by address":      {env: map[string]string{"CONSUL_HTTP_SSL": "1"}, address: "http://127.0.0.1:8501", wantAddress: "https://127.0.0.1:8501"},
		"no CA file":          {env: map[string]string{"CONSUL_CACERT": filepath.Join(dir, "none")}, wantNo: "CONSUL_CACERT"},
		"key without cert":    {env: map[string]string{"CONSUL_CLIENT_KEY": flag}, wantNo: "CONSUL_CLIENT_CERT"},
		"a namespace":         {env: map[string]string{"CONSUL_NAMESPACE": "team"}, wantNo: "namespaces are Consul Enterprise's"},
		"a partition":         {env: map[string]string{"CONSUL_PARTITION": "p1"}, wantNo: "admin partitions are Consul Enterprise's"},
		"the only namespace":  {env: map[string]string{"CONSUL_NAMESPACE": "default"}},
		"basic auth":          {env: map[string]string{"CONSUL_HTTP_AUTH": "a:b"}, wantNo: "basic authentication is not served"},
		"neither yes nor no":  {env: map[string]string{"CONSUL_HTTP_SSL": "perhaps"}, wantNo: "want true or false"},
		"neither, to verify":  {env: map[string]string{"CONSUL_HTTP_SSL_VERIFY": "perhaps"}, wantNo: "want true or false"},
		"a socket has no TLS": {env: map[string]string{"CONSUL_HTTP_SSL": "true"}, address: "unix:///run/consul", wantAddress: "unix:///run/consul"},
	} {
		address := c.address
		got, err := consulAccess(streams{env: func(k string) string { return c.env[k] }}, &address, c.file)
		if c.wantNo != "" {
			if err == nil || !strings.Contains(err.Error(), c.wantNo) {
				t.Errorf("%s: %v; want %q", name, err, c.wantNo)
			}
			continue
		}
		if err != nil || got.Token != c.wantToken || address != c.wantAddress || got.TLS.InsecureSkipVerify {
			t.Errorf("%s: %q at %q, %v", name, got.Token, address, err)
		}
	}
}
