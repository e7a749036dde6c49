// Says for every archive what Go's archive/tar sees, with which kit reads: go run reader.go DIRECTORY COUNT
package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
)

type entry struct {
	Name   []byte `json:"name"`
	Kind   string `json:"kind"`
	Mode   int64  `json:"mode"`
	Size   int64  `json:"size"`
	Sha256 string `json:"sha256"`
}

type answer struct {
	Entries []entry `json:"entries"`
	Error   string  `json:"error,omitempty"`
}

func read(path string) (seen []entry, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	seen = []entry{}
	archive := tar.NewReader(file)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			return seen, nil
		}
		if err != nil {
			return nil, err
		}
		kind := "other"
		switch header.Typeflag {
		case tar.TypeReg:
			kind = "file"
		case tar.TypeDir:
			kind = "folder"
		}
		hash := sha256.New()
		var size int64
		if kind == "file" {
			if size, err = io.Copy(hash, archive); err != nil {
				return nil, err
			}
		}
		seen = append(seen, entry{[]byte(header.Name), kind, header.Mode & 0o777, size, hex.EncodeToString(hash.Sum(nil))})
	}
}

func main() {
	count, _ := strconv.Atoi(os.Args[2])
	out := json.NewEncoder(os.Stdout)
	for number := 0; number < count; number++ {
		seen, err := read(fmt.Sprintf("%s/%d.tar", os.Args[1], number))
		if err != nil {
			out.Encode(answer{Error: err.Error()})
		} else {
			out.Encode(answer{Entries: seen})
		}
	}
}
