"""The public interface: `import medlt` offers these names, each imported when it is first used."""
