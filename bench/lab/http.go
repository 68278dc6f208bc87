package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// get reads a URL; any answer but 200 is an error.
func get(ctx context.Context, url string) ([]byte, error) {
	return call(ctx, http.MethodGet, url, nil)
}

// Put writes v as JSON to a URL; any answer but 200 is an error.
func Put(ctx context.Context, url string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = call(ctx, http.MethodPut, url, body)
	return err
}

func call(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %.300s", method, url, res.Status, answer)
	}
	return answer, err
}
