"""Chat through OpenAI's client with a server that runs: `radixmesh serve`, then this file."""

from openai import OpenAI


def main() -> None:
    client = OpenAI(base_url="http://127.0.0.1:30000/v1", api_key="none")
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Name three colours."}],
        max_tokens=64,
        stream=True,
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
